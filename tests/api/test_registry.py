"""Discovery, look-up, clashes, broken plugins."""

from __future__ import annotations

import pytest

from ftcore import hookimpl
from ftcore.api.components import KINDS, ChatTemplate, Component, OptionGroup, Stage
from ftcore.api.registry import HOOKS, installed, load
from ftcore.errors import UsageError


def template(name: str, **fields: object) -> ChatTemplate:
    return ChatTemplate(name=name, summary="a test's template", text="{{ messages }}", **fields)


def test_built_ins_come_through_entry_points_alone(built_in) -> None:
    assert {plugin.id for plugin in built_in.listed} == {
        candidate.id for candidate in installed() if candidate.distribution == "ftcore"
    }
    assert {plugin.status for plugin in built_in.listed} == {"ok"}


def test_a_plugin_is_found_by_name_alias_and_full_name(with_plugins, hooks) -> None:
    plugins = with_plugins(acme=hooks(ft_chat_templates=lambda: [template("own", aliases=("mine",))]))
    for name in ("own", "mine", "acme:own"):
        assert plugins.find(ChatTemplate, name).full_name == "acme:own"


def test_two_offers_of_one_name_are_an_error_that_names_both(with_plugins, hooks) -> None:
    plugins = with_plugins(
        acme=hooks(ft_chat_templates=lambda: [template("own")]), blob=hooks(ft_chat_templates=lambda: [template("own")])
    )
    with pytest.raises(UsageError) as error:
        plugins.find(ChatTemplate, "own", "x.yaml:3")
    assert str(error.value) == (
        "x.yaml:3: chat template 'own' is registered by acme and blob; write the full name: acme:own or blob:own"
    )
    assert plugins.find(ChatTemplate, "blob:own").distribution == "blob"


def test_a_third_party_never_replaces_a_built_in_silently(with_plugins, hooks) -> None:
    plugins = with_plugins(acme=hooks(ft_chat_templates=lambda: [template("mine", aliases=("chatml",))]))
    with pytest.raises(UsageError, match="registered by acme and ftcore"):
        plugins.find(ChatTemplate, "chatml")


def test_an_unknown_name_lists_the_near_ones(built_in) -> None:
    with pytest.raises(UsageError) as error:
        built_in.find(ChatTemplate, "chatlm", "x.yaml:1")
    assert str(error.value) == ("x.yaml:1: unknown chat template 'chatlm'; did you mean chatglm, chatglm3 or chatml?")


def test_a_plugin_that_fails_to_import_stops_nothing_and_is_named_when_missed(with_plugins) -> None:
    plugins = with_plugins(acme=ImportError("no module named 'zap'"))
    assert [plugin.status for plugin in plugins.broken] == ["import failed: ImportError: no module named 'zap'"]
    assert plugins.find(ChatTemplate, "chatml").distribution == "ftcore"
    with pytest.raises(UsageError) as error:
        plugins.find(ChatTemplate, "zzz")
    assert "plugin acme/plugin is broken and may contain it: import failed: ImportError" in str(error.value)


def test_a_plugin_may_even_exit_on_import(with_plugins) -> None:
    assert with_plugins(acme=SystemExit(3)).broken[0].status == "import failed: SystemExit: 3"


def test_a_misspelt_hook_is_reported_with_the_right_one(with_plugins, hooks) -> None:
    plugins = with_plugins(acme=hooks(ft_chat_template=lambda: ()))
    assert plugins.broken[0].status == "unknown hook ft_chat_template; did you mean ft_chat_templates?"


def test_a_hook_with_a_foreign_argument_is_reported(with_plugins, hooks) -> None:
    plugins = with_plugins(acme=hooks(ft_check_plan=lambda plan, money: []))
    assert "money" in plugins.broken[0].status


def test_a_bad_component_is_named_and_the_good_ones_stay(with_plugins, hooks) -> None:
    offers = [template("good"), "not a template", template("a:b")]
    plugins = with_plugins(acme=hooks(ft_chat_templates=lambda: offers))
    assert plugins.broken[0].status == (
        "ft_chat_templates returns 'not a template': it is str, not a ChatTemplate; "
        "ft_chat_templates returns 'a:b': its name must be a string without ':' and ','"
    )
    assert plugins.find(ChatTemplate, "good").full_name == "acme:good"


def test_a_hook_that_raises_is_that_plugins_problem(with_plugins, hooks) -> None:
    def fail() -> list[ChatTemplate]:
        raise KeyError("oops")

    assert (
        with_plugins(acme=hooks(ft_chat_templates=fail)).broken[0].status
        == "ft_chat_templates failed: KeyError: 'oops'"
    )


@pytest.mark.parametrize("name", ["acme", "acme/plugin"])
def test_plugins_are_turned_off_by_distribution_or_id(with_plugins, hooks, name: str) -> None:
    plugins = with_plugins(disabled=[name], acme=hooks(ft_chat_templates=lambda: [template("own")]))
    assert [plugin.status for plugin in plugins.listed if plugin.id == "acme/plugin"] == ["disabled"]
    assert not plugins.broken
    with pytest.raises(UsageError):
        plugins.find(ChatTemplate, "own")


def test_the_environment_turns_plugins_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_DISABLE_PLUGINS", "ftcore/stages, nobody")
    assert load().of(Stage) == ()


def test_a_default_that_two_offer_is_an_error(with_plugins, hooks, built_in) -> None:
    stage = built_in.default(Stage).component
    plugins = with_plugins(acme=hooks(ft_stages=lambda: [stage]))
    with pytest.raises(UsageError, match="a default stage is registered by acme and ftcore"):
        plugins.default(Stage)


def test_options_must_be_an_option_group(with_plugins, hooks) -> None:
    class Odd(ChatTemplate):
        Options = dict  # type: ignore[assignment]

    plugins = with_plugins(acme=hooks(ft_chat_templates=lambda: [Odd(name="odd", summary="x")]))
    assert "its Options must be a subclass" in plugins.broken[0].status
    assert issubclass(ChatTemplate.Options, OptionGroup)


@pytest.mark.parametrize(("kind", "old"), [(kind, old) for kind in KINDS for old in kind.renamed])
def test_what_an_earlier_version_called_otherwise_is_refused_with_its_new_name(
    kind: type[Component], old: str, with_plugins, hooks, built_in
) -> None:
    offered = type(built_in.of(kind)[0].component)
    mine = type("Mine", (offered,), {old: True})(name="mine", summary="x")
    plugins = with_plugins(acme=hooks(**{HOOKS[kind]: lambda: [mine]}))
    assert plugins.broken[0].status.endswith(f": since ftcore 0.2 {old} is {kind.renamed[old]}")
    assert hasattr(kind, kind.renamed[old])
    assert not hasattr(kind, old)


def test_hookimpl_is_exported() -> None:
    assert hookimpl.project_name == "ftcore"
