"""`models.yaml`: what is impossible is one sentence that names the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsd import ConfigError, load_families
from hsd.config import find_family

ROOT = Path(__file__).parents[1]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "models.yaml"
    path.write_text(text)
    return path


def test_the_projects_own_file_holds_the_built_in_family_and_two_of_the_hub():
    families = load_families()
    assert next(iter(families)) == "builtin" and families["builtin"].target == "large"
    assert len([f for f in families.values() if "/" in f.target_spec.path]) >= 2
    assert all(f.license for f in families.values())


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("families: [", "not valid YAML in line", ""),
        ("families:\n  a: {models: {x: y}}\n  a: {models: {x: z}}", "in line 3: 'a' stands there twice", ""),
        ("other: 1", "holds no families", "families:"),
        ("- a", "holds no families", ""),
        ("families: {}", "holds no families", ""),
        ("families: {a: 3}", "no mapping", "models:"),
        ("families: {a: {models: {}}}", "has no models", ""),
        ("families: {a: {models: {x: {pth: q}}}}", "has no path", ""),
        ("families: {a: {models: {x: {path: q, quantisation: nf4}}}}", "Unknown key 'quantisation'", "quantization"),
        ("families: {a: {models: {x: {path: q, quantization: nf5}}}}", "'nf5'", "nf4"),
        ("families: {a: {models: {x: {path: 3}}}}", "should be a text", ""),
        ("families: {a: {contxt: 9, models: {x: y}}}", "Unknown key 'contxt'", "context"),
        ("families: {a: {context: true, models: {x: y}}}", "should be a whole number", ""),
        ("families: {a: {context: 2, models: {x: y}}}", "2 tokens", "16"),
        ("families: {a: {examples: yes, models: {x: y}}}", "should be", ""),
        ("families: {a: {target: z, models: {x: y}}}", "target 'z'", "x"),
        ("families: {a: {models: {lookup: y}}}", "lookup", "taken"),
        ("familes: {}\nfamilies: {a: {models: {x: y}}}", "Unknown key 'familes'", "families"),
    ],
)
def test_a_broken_file_says_where(tmp_path, text, said, hint):
    with pytest.raises(ConfigError) as caught:
        load_families(written(tmp_path, text))
    assert said in caught.value.message and hint in caught.value.hint


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_families(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_families(tmp_path / "bytes.yaml")


def test_a_family_can_be_named_with_its_file(tmp_path):
    path = written(tmp_path, "families: {mine: {models: {a: org/a, b: {path: org/b, quantization: nf4}}}}")
    family = find_family(f"{path}#mine")
    assert [m.name for m in family.models] == ["a", "b"] and family.target_spec.quantization == "nf4"
    assert find_family(str(path)) == family
    with pytest.raises(ConfigError) as caught:
        find_family(f"{path}#mien")
    assert "'mine'" in caught.value.hint


def test_a_folder_beside_the_file_is_found_from_anywhere(tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    path = written(tmp_path, "families: {a: {models: {x: ./weights, y: weights}}}")
    assert {Path(m.path) for m in load_families(path)["a"].models} == {(tmp_path / "weights").resolve()}
