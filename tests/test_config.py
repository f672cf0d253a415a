"""Settings: which source wins, what a mistake is told, and the digest."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchlake.pipeline.config import Settings, digest, known_names, load_settings
from patchlake.pipeline.errors import ConfigError

names = st.text(max_size=3)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names
sections = st.dictionaries(names, scalars | st.lists(scalars, max_size=2), max_size=3)
trees = st.dictionaries(names, scalars | sections, min_size=1, max_size=4)


@pytest.mark.parametrize("given_by", [*itertools.product([False, True], repeat=4)])
def test_a_flag_beats_set_beats_yaml_beats_the_preset(given_by):
    preset, yaml, assignment, flag = given_by
    settings = load_settings(
        ("preset: patchcore_paper\n" if preset else "") + ("image: {crop: 1}" if yaml else ""),
        ["image.crop=9", "image.crop=2"] if assignment else [],
        {"image": {"crop": 3}} if flag else {},
    )
    crops = [crop for crop, here in zip((224, 1, 2, 3), given_by, strict=True) if here]
    assert settings.image.crop == (crops[-1] if crops else None)
    assert settings.image.resize == (256 if preset else (224, 224))
    assert settings.preset == ("patchcore_paper" if preset else None)


@pytest.mark.parametrize(
    ("text", "assignments", "flags", "chosen"),
    [
        ("preset: patchcore_paper", ["preset=null"], {}, None),
        ("preset: nonsense", ["preset=patchcore_paper"], {}, "patchcore_paper"),
        ("preset: nonsense", ["preset=null"], {"preset": "patchcore_paper"}, "patchcore_paper"),
    ],
)
def test_the_preset_itself_is_the_last_one_named(text, assignments, flags, chosen):
    settings = load_settings(text, assignments, flags)
    assert settings.preset == chosen
    assert settings.image.crop == (224 if chosen else None)


@pytest.mark.parametrize("text", ["", "# only a comment", "null", "{}"])
def test_nothing_said_is_the_defaults(text):
    assert load_settings(text) == Settings()


@pytest.mark.parametrize(
    ("text", "assignments", "near"),
    [
        ("", ["image.resise=3"], "'image.resise' is unknown; did you mean 'image.resize'"),
        ("image: {resise: 3}", [], "'image.resise' is unknown; did you mean 'image.resize'"),
        ("sed: 3", [], "'sed' is unknown; did you mean 'seed'"),
        ("imgae: {resize: 3}", [], "'imgae' is unknown; did you mean 'image'"),
        ("", ["imgae.resize=3"], "'imgae' is unknown; did you mean 'image'"),
        ("zzzz: 3", [], "'zzzz' is unknown; known: .*image.resize, .*seed"),
        ("", ["preset=patchcore_papre"], "'patchcore_papre' is unknown; did you mean 'patchcore_p"),
        ("preset: [patchcore_paper]", [], "preset .* is unknown; "),
    ],
)
def test_an_unknown_name_is_told_the_nearest_known_one(text, assignments, near):
    with pytest.raises(ConfigError, match=near):
        load_settings(text, assignments)


@pytest.mark.parametrize(
    ("assignment", "named"),
    [
        ("image.resize=abc", "'image.resize' is 'abc': "),
        ("image.resize=[224]", r"'image.resize' is \[224\]: "),
        ("image.resize=0", "'image.resize' is 0: "),
        ("image.crop=-1", "'image.crop' is -1: "),
        ("image=5", "'image' is 5: "),
        ("seed=1.5", "'seed' is 1.5: "),
        ("max_failed=2", "'max_failed' is 2: "),
        ("backbone.layers=[2, 2]", r"'backbone.layers' is \[2, 2\]: .*names a layer twice"),
        ("backbone.layers=[]", r"'backbone.layers' is \[\]: "),
        ("score.heatmaps=some", "'score.heatmaps' is 'some': "),
        ("columns.extra=dt", "'columns.extra' is 'dt': "),
        ("method.layers=[1]", r"'method.layers' is \[1\]: "),
        ("method.a.b=1", r"'method.a' is \{'b': 1\}: "),
        ("method=5", "'method' is 5: "),
        ("1=2", "'1' is "),
    ],
)
def test_a_value_of_the_wrong_type_is_shown_with_its_name(assignment, named):
    with pytest.raises(ConfigError, match=f"^setting {named}") as raised:
        load_settings("", [assignment])
    assert "pydantic" not in str(raised.value)


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as raised:
        load_settings("image: {resise: 3}\nseed: x", ["workers=0"])
    for fault in ("'image.resise' is unknown", "'seed' is 'x'", "'workers' is 0"):
        assert fault in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: b: c",
        "seed: \x00",
        "a: !!python/object:os.system x",
        "score: {scored_at: 2026-13-01}",
        "[]",
        "5",
        "false",
        "just words",
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused(text):
    with pytest.raises(
        ConfigError, match=r"the config file (is not YAML|holds a \w+, not settings)"
    ):
        load_settings(text)


@pytest.mark.parametrize(
    "assignment",
    [
        "seed",
        "=3",
        "",
        "seed=[1",
        "score.scored_at=2026-13-01",
    ],
)
def test_a_set_that_is_no_name_and_value_is_shown(assignment):
    with pytest.raises(ConfigError, match="--set") as raised:
        load_settings("", [assignment])
    assert assignment.partition("=")[0] in str(raised.value)


def test_what_a_method_understands_is_left_to_the_method():
    assignments = ["method.c=true", "method.d=", "method.e=text"]
    method = load_settings("method: {name: other, a: 1, b: 1.5}", assignments).method
    assert method.name == "other"
    # As text: 1 == 1.0 == True, but the fields of a method's dataclass are typed.
    assert str(method.options()) == "{'a': 1, 'b': 1.5, 'c': True, 'd': None, 'e': 'text'}"
    assert Settings().method.options() == {}


def test_known_names_are_dotted_and_each_can_be_set():
    assert {"seed", "image.resize", "method.name", "columns.extra"} <= set(known_names())
    dumped = Settings().model_dump(mode="json")
    for name in known_names():
        value: object = dumped
        for part in name.split("."):
            value = value[part]
        nested: object = value
        for part in reversed(name.split(".")):
            nested = {part: nested}
        assert load_settings(flags=nested) == Settings()


def _reversed(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {name: _reversed(value[name]) for name in reversed(value)}


@given(trees)
def test_the_digest_does_not_depend_on_order(tree):
    assert digest(tree) == digest(_reversed(tree))


@given(trees, st.data())
def test_the_digest_depends_on_every_name_and_value(tree, data):
    name = data.draw(st.sampled_from(sorted(tree)))
    without = {key: value for key, value in tree.items() if key != name}
    assert (
        len({digest(tree), digest(without), digest({**tree, name: ["another", tree[name]]})}) == 3
    )


def test_settings_have_one_digest_however_they_came():
    by_yaml = load_settings("seed: 1\nmethod: {b: 2, a: 1}\nimage: {crop: 5}")
    by_set = load_settings("", ["image.crop=5", "method.a=1", "method.b=2"], {"seed": 1})
    assert digest(by_yaml) == digest(by_set) != digest(load_settings("", ["image.crop=5"]))


@pytest.mark.parametrize(
    "assignment",
    [
        "image.uri_prefixes=https://user:s3cr3t@host/",
        "image.uri_prefixes=[https://host/?sig=s3cr3t]",
        "image.uri_prefixes={a: 'https://user:s3cr3t@host/'}",
        "image.uri_prefixes=[[https://user:s3cr3t@host/]]",
        "image.bits=s3://key:s3/cr3t@bucket",
        "storage.endpoint=https://user:s3cr3t@host",
        "preset=https://user:s3cr3t@host",
        "image.resize={s3cr3t: [}",
        "seed='s3cr3t",
        "https://user:s3cr3t@host",
    ],
)
def test_no_message_about_a_setting_has_a_secret(assignment):
    with pytest.raises(ConfigError) as raised:
        load_settings("", [assignment])
    said = str(raised.value)
    assert "cr3t" not in said
    assert "\n" not in said


def test_no_message_about_a_config_file_has_its_text():
    with pytest.raises(ConfigError, match=r"not YAML: line 2, column \d+: .*expected") as raised:
        load_settings("image:\n  uri_prefixes: [s3://key:s3cr3t@bucket]]\n")
    assert "s3cr3t" not in str(raised.value)


def test_a_word_where_a_list_belongs_is_said():
    with pytest.raises(ConfigError, match=r"uri_prefixes' is 's3://b/': write a list, \[A, B\]"):
        load_settings("", ["image.uri_prefixes=s3://b/"])


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ConfigError, match=r"score\.scored_at.*timezone"):
        load_settings("", ["score.scored_at=2026-01-01T00:00:00"])
    load_settings("", ["score.scored_at=2026-01-01T00:00:00Z"])
