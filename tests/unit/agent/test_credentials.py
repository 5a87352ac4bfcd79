"""`[[credential]]`: what is accepted, and that no mistake with a password is repeated back."""

from pathlib import Path

import pytest

from tidegate_agent.config import AgentConfig, CredentialConfig, load_config
from tidegate_agent.credentials import credentials_status, login_of, open_credentials
from tidegate_core.errors import UsageError
from tidegate_core.settings import show_settings

HUB = '[[credential]]\nregistry = "docker.io"\nusername = "u"\npassword_file = "/p"\nshare = "node"\n'


def configured(tmp_path: Path, toml: str, **environment: str) -> AgentConfig:
    file = tmp_path / "agent.toml"
    file.write_text(toml)
    return load_config(file, environment=environment)


def test_a_login_names_a_registry_a_user_a_file_and_who_shares_it(tmp_path: Path) -> None:
    """C17, DESIGN 8: and `config show` gives the same back, with the path alone."""
    config = configured(tmp_path, HUB + 'token_host = "SSO.example.org"\n')

    assert config.credential == (
        CredentialConfig(
            registry="docker.io",
            username="u",
            password_file=Path("/p"),
            share="node",
            token_host="sso.example.org",
        ),
    )
    assert configured(tmp_path, show_settings(config)).credential == config.credential


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        (HUB.replace("docker.io", "dokcer.io"), "did you mean 'docker.io'?"),
        (HUB + HUB, "has a login already"),
        (HUB.replace('share = "node"', ""), "has no `share`"),
        (HUB.replace('"node"', '"everyone"'), '"node", "nobody"'),
        (HUB + 'token_host = "https://sso.example.org/"', "without scheme"),
    ],
)
def test_a_login_that_could_not_work_is_refused(tmp_path: Path, toml: str, told: str) -> None:
    """DESIGN 8: who shares it has no default; it is somebody's decision."""
    with pytest.raises(UsageError) as caught:
        configured(tmp_path, toml)

    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("toml", "environment"),
    [
        (HUB.replace('"u"', '"u:hunter2"'), {}),
        (HUB.replace('"/p"', '"hunter2"'), {}),
        (HUB + 'password = "hunter2"', {}),
        ('credential = "hunter2"', {}),
        ('credential = ["hunter2"]', {}),
        ("", {"TIDEGATE_CREDENTIAL": '[{"password": "hunter2",}]'}),
        ("", {"TIDEGATE_CREDENTIAL": '["hunter2"]'}),
        (HUB, {"TIDEGATE_CREDENTIAL__0__PASSWORD": "hunter2"}),
        (HUB, {"TIDEGATE_CREDENTIAL__0__PASSWORD_FILE": "hunter2"}),
        (HUB + "password = hunter2", {}),
    ],
)
def test_a_password_in_the_wrong_place_is_not_repeated(
    tmp_path: Path, toml: str, environment: dict[str, str]
) -> None:
    """C17, O4: neither in the complaint nor in its causes, which a traceback would show."""
    with pytest.raises(UsageError) as caught:
        configured(tmp_path, toml, **environment)

    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__


async def test_a_file_that_is_missing_is_told_and_no_reason_not_to_start(tmp_path: Path) -> None:
    """C17, I1: cloud-init may write it later."""
    entry = CredentialConfig(
        registry="docker.io", username="u", password_file=tmp_path / "none", share="node"
    )

    (status,) = credentials_status(await open_credentials([login_of(entry)]))

    assert (status.registry, status.working) == ("docker.io", False)
    assert str(tmp_path / "none") in status.reason
    assert status.action.startswith("install -m 600 ")
