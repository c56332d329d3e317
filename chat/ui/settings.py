"""The settings of a reply: components, and the way between their values and `Settings`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import gradio as gr

from chat.settings import NAMES, Settings

_THINKING: dict[bool | None, str] = {None: "model", True: "on", False: "off"}


def build(plan: str, names: list[str], *, keep: bool = True) -> dict[str, Any]:
    """The panel: its components in the order of `NAMES`, and what chooses presets and, with `keep`, keeps them."""
    start = Settings(plan=plan)
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        preset = gr.Dropdown(
            names,
            value=None,
            label="Preset",
            info="choose one, or write a name to keep these settings under" if keep else "sets the fields below",
            allow_custom_value=keep,
            elem_id="preset",
        )
        with gr.Row(elem_id="preset-buttons", visible=keep):
            store = gr.Button("Keep", size="sm", elem_id="preset-keep")
            forget = gr.Button("Forget", size="sm", elem_id="preset-forget")
        fields = {
            "temperature": gr.Slider(
                0, 2, start.temperature, step=0.05, label="Temperature", info="0 takes the likeliest token"
            ),
            "top_p": gr.Slider(0.05, 1, start.top_p, step=0.01, label="Top-p", info="1 keeps every token"),
            "top_k": gr.Number(start.top_k, precision=0, minimum=0, label="Top-k", info="0 keeps every token"),
            "min_p": gr.Slider(0, 0.5, start.min_p, step=0.01, label="Min-p", info="0 keeps every token"),
            "repetition_penalty": gr.Slider(
                1, 2, start.repetition_penalty, step=0.01, label="Repetition penalty", info="1 is none"
            ),
            "presence_penalty": gr.Slider(
                -2, 2, start.presence_penalty, step=0.05, label="Presence penalty", info="0 is none"
            ),
            "frequency_penalty": gr.Slider(
                -2, 2, start.frequency_penalty, step=0.05, label="Frequency penalty", info="0 is none"
            ),
            "max_tokens": gr.Number(start.max_tokens, precision=0, minimum=1, label="Longest reply", info="tokens"),
            "seed": gr.Textbox(label="Seed", placeholder="a new one each time", info="a whole number repeats a reply"),
            "thinking": gr.Radio(
                [("As the model does", _THINKING[None]), ("On", _THINKING[True]), ("Off", _THINKING[False])],
                value=_THINKING[start.thinking],
                label="Thinking",
                info="before it answers",
                visible=False,
                elem_id="thinking",
            ),
            "system": gr.Textbox(label="System prompt", lines=3, max_lines=8),
            "plan": gr.Textbox(start.plan, label="Plan", info="auto, or levels like lookup:2>tiny:3>big"),
        }
    return {
        "settings": [fields[name] for name in NAMES],
        "preset": preset,
        "preset_keep": store,
        "preset_forget": forget,
    }


def read(*values: Any) -> Settings:
    """Settings from the components' values. A seed that is no number is left to the engine's check to refuse."""
    given = dict(zip(NAMES, values, strict=True))
    kept = {name: value for name, value in given.items() if value is not None}
    seed = str(kept.pop("seed", "") or "").strip()
    whole = re.fullmatch(r"-?[0-9]{1,99}", seed)
    kept["seed"] = (int(seed) if whole else seed[:100]) if seed else None
    kept["thinking"] = {"on": True, "off": False}.get(str(given["thinking"]))
    kept["plan"] = str(kept.get("plan", "")).strip() or "auto"
    return Settings(**kept)


def show(settings: Settings) -> list[Any]:
    """Values for the components."""
    shown = dataclasses.asdict(settings)
    shown["seed"] = "" if settings.seed is None else str(settings.seed)
    shown["thinking"] = _THINKING[settings.thinking]
    return [shown[name] for name in NAMES]
