"""The callbacks that the host gets when it loads its extensions, anew with each Reload UI."""

from __future__ import annotations

from . import http_api, opened_models, options, sd15_decoder, tab, upscaler, webui_api


def start() -> None:
    """Tab, settings, API, decoder of generations. Upscaler and scripts are found by their classes."""
    callbacks = webui_api.script_callbacks
    callbacks.on_ui_settings(options.add)
    callbacks.on_ui_tabs(tab.add)
    callbacks.on_after_component(tab.watch)
    callbacks.on_app_started(http_api.attach)
    callbacks.on_app_started(lambda *_: webui_api.wrap_extras_upscaling(upscaler.process_extras))
    callbacks.on_model_loaded(sd15_decoder.attach)
    callbacks.on_script_unloaded(stop)


def stop() -> None:
    """Before the host loads its extensions again."""
    tab.close()
    opened_models.stop()
