"""The form that adds a family to the person's own models.yaml."""

from __future__ import annotations

from typing import Any

import gradio as gr

import hsd
from chat.own_families import QUANTIZATIONS, OwnFamilies
from chat.ui.text import escape


def build() -> dict[str, Any]:
    """The form, folded; its fields in the order of `OwnFamilies.add`."""
    words = ("as the file says", "4 bit", "8 bit")
    kinds = [(f"{kind}: {said}", kind) for kind, said in zip(QUANTIZATIONS, words, strict=True)]
    with gr.Accordion("Add a family", open=False, elem_id="own"):
        fields = [
            gr.Textbox(label="Name", placeholder="my-family", max_lines=1, elem_id="own-name"),
            gr.Textbox(
                label="Target",
                info="the model whose words the reply is made of: a hub name or a folder",
                placeholder="Qwen/Qwen3-8B",
                max_lines=1,
                elem_id="own-target",
            ),
            gr.Textbox(
                label="Drafts",
                info="one per line, cheapest first; they must share the target's vocabulary",
                placeholder="Qwen/Qwen3-0.6B\nQwen/Qwen3-1.7B",
                lines=2,
                max_lines=5,
                elem_id="own-drafts",
            ),
            gr.Dropdown(kinds, value="none", label="Quantization of the target", elem_id="own-target-quantization"),
            gr.Dropdown(kinds, value="none", label="Quantization of the drafts", elem_id="own-quantization"),
        ]
        add = gr.Button("Add", elem_id="own-add")
        said = gr.HTML(elem_id="own-said", apply_default_css=False)
    return {"own": fields, "own_add": add, "own_said": said}


def wire(own: OwnFamilies, ui: dict[str, Any], quiet: dict[str, Any]) -> Any:
    """Connect it; the event that follows an added family."""

    def add(*values: Any) -> list[Any]:
        try:
            family = own.add(*(str(value or "") for value in values))
        except hsd.HsdError as error:
            return [f'<p class="problem" role="alert">{escape(error)}</p>', *[gr.skip()] * len(values)]
        return [_added(own, family), "", "", "", "none", "none"]

    return ui["own_add"].click(add, ui["own"], [ui["own_said"], *ui["own"]], **quiet)


def _added(own: OwnFamilies, family: hsd.Family) -> str:
    chain = " → ".join(model.name for model in family.models)
    return (
        f'<p role="status"><b>{escape(family.name)}</b> was added: {escape(chain)}.</p><p class="quiet">'
        f"It is kept in {escape(own.path)}, where more can be said about it.</p>"
    )
