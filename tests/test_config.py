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
        ("families: {a: {title: 2024-01-01, models: {x: y}}}", "should be a text", "quotes"),
        ("families: {a: {target: 7, models: {7: y}}}", "should be a text", "quotes"),
        ("families: {a: {title: [1], models: {x: y}}}", "this list", ""),
        ("families: {a: {title: 2024-13-45, models: {x: y}}}", "not valid YAML", ""),
        ("families: {1: {models: {x: y}}, 1: {models: {x: y}}}", "'1' stands there twice", ""),
        ("families:\n\ta: 1", "not valid YAML in line 2", ""),
        ("families: !!python/object:os.system {}", "not valid YAML in line 1", ""),
        ("[" * 2_000, "nested too deeply", ""),
        ("", "holds no families", "families:"),
        ("#" * 1_000_001, "larger than 1 MB", ""),
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


TEXT = "families:\n  käse:\n    title: Grüße\n    models: {a: org/a}\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_file_that_an_editor_of_windows_wrote_is_read(tmp_path, encoding, ending):
    (tmp_path / "models.yaml").write_bytes(TEXT.replace("\n", ending).encode(encoding))
    assert load_families(tmp_path / "models.yaml")["käse"].title == "Grüße"
    (tmp_path / "models.yaml").write_bytes(b"\xfe\xff" + TEXT.encode("utf-16-be"))
    assert load_families(tmp_path / "models.yaml")["käse"].title == "Grüße"


@pytest.mark.parametrize(
    "data", [TEXT.encode("latin-1"), TEXT.encode("utf-16-le"), b"families:\0", b"\xff\xfe\x00", bytes(range(256))]
)
def test_bytes_that_are_no_text_are_one_sentence(tmp_path, data):
    (tmp_path / "models.yaml").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_families(tmp_path / "models.yaml")
    assert len(str(caught.value).splitlines()) == 1 and "UTF-8" in str(caught.value)


def test_what_is_no_file_is_one_sentence(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "loop", "~no-such-user/models.yaml", "nul\0", tmp_path / ("long" * 100)):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_families(path)


def test_a_key_is_the_text_that_stands_there(tmp_path):
    path = written(tmp_path, "families: {1.50: {models: {on: p, 1e3: q, 0.6b: r, 2024-01-01: s, no: t, 1_0: u}}}")
    family = load_families(path)["1.50"]
    assert [model.name for model in family.models] == ["on", "1e3", "0.6b", "2024-01-01", "no", "1_0"]
    assert family.target == "1_0"


def test_references_that_multiply_do_no_harm(tmp_path):
    lists = "".join(f"    k{n + 1}: &k{n + 1} [{', '.join([f'*k{n}'] * 9)}]\n" for n in range(12))
    where = "families:\n  a:\n    models: {x: y}\n    memory_gb: &k0 [1]\n"
    for key in ("title", "quantization", "examples", "models"):
        path = written(tmp_path, f"{where}{lists}    {key}: *k12\n".replace("k1:", "license:", 1))
        with pytest.raises(ConfigError) as caught:
            load_families(path)
        assert len(str(caught.value)) < 400


FOLDERS = ["C# notes", "#", "a.yaml#b", "50% ?x=1&y", 'it\'s "mine"', "~", "käse\nbrot", "a:b"]


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("name", ["mine", "C#", "x.yaml"])
def test_a_family_is_found_whatever_its_folder_is_called(tmp_path, folder, name):
    (tmp_path / folder).mkdir()
    path = written(tmp_path / folder, f"families: {{'{name}': {{models: {{a: org/a}}}}}}")
    assert find_family(f"{path}#{name}").name == name
    assert find_family(str(path)).name == name
    assert find_family(str(path.rename(path.with_suffix(".YML")))).name == name
    with pytest.raises(ConfigError, match="cannot be read"):
        find_family(f"{path}#{name}")
