"""Prompts in ComfyUI's API format, put together node by node."""

from __future__ import annotations

from typing import Any

Link = list[Any]

LOADER = {"model": "tiny", "dtype": "auto", "experts": "auto"}
SAMPLER = {"seed": 0, "steps": 2, "sampler": "auto", "eta": 1.0, "tile": 0, "wrap": False}
DECODE = {"fidelity": "auto", "color_fix": "adain", "tile": 0, "scale": 0.0, "wrap": False}


class Prompt(dict[str, Any]):
    """The nodes by id. `add` gives a link to the node's first output; link[0] is its id."""

    def add(self, kind: str, **inputs: Any) -> Link:
        """One more node."""
        name = str(len(self) + 1)
        self[name] = {"class_type": kind, "inputs": inputs}
        return [name, 0]

    def load(self, name: str = "photo.png") -> Link:
        """A picture of the input folder."""
        return self.add("LoadImage", image=name)

    def save(self, image: Link, prefix: str = "test") -> str:
        """A Save Image; its id."""
        return self.add("SaveImage", images=image, filename_prefix=prefix)[0]

    def model(self, **settings: Any) -> Link:
        """A MoESR Loader."""
        return self.add("MoESRLoader", **{**LOADER, **settings})

    def sample(self, model: Link, image: Link, **settings: Any) -> Link:
        """A MoESR Sampler of two steps."""
        more = {"batch_seed": "per image", **settings}
        return self.add("MoESRSampler", model=model, image=image, **{**SAMPLER, **more})

    def decode(self, model: Link, samples: Link, image: Link | None = None, **settings: Any) -> Link:
        """A Frequency-Compensated Decode."""
        source = {} if image is None else {"image": image}
        return self.add("FrequencyCompensatedDecode", model=model, samples=samples, **source, **{**DECODE, **settings})


def three_nodes(image: str = "photo.png", name: str = "tiny", **settings: Any) -> tuple[Prompt, str]:
    """Loader, Sampler and Decode, and the id of the node that saves."""
    prompt = Prompt()
    picture, model = prompt.load(image), prompt.model(model=name)
    samples = prompt.sample(model, picture, **settings)
    return prompt, prompt.save(prompt.decode(model, samples, picture))


def upscale(image: str = "photo.png", name: str = "tiny", scale: float = 4.0, **settings: Any) -> tuple[Prompt, str]:
    """MoESR Upscale, and the id of the node that saves."""
    prompt = Prompt()
    picture = prompt.load(image)
    return prompt, prompt.save(prompt.add("MoESRUpscale", image=picture, model=name, scale=scale, **settings))
