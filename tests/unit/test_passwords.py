"""What may be a password, and that only hashes of it are kept."""

import pytest

from cacheyard.domain.passwords import (
    SPECIALS,
    complexity_fault,
    generate_password,
    hash_password,
    is_password,
    same,
    sha256_hex,
)


@pytest.mark.parametrize("password", ["Abcdef12", "abcdef1!", "ABCDEF1!", "Abcdefg!", "Aa1" + "x" * 61])
def test_three_kinds_of_characters_are_enough(password: str) -> None:
    assert complexity_fault(password) is None


@pytest.mark.parametrize("special", list(SPECIALS))
def test_every_documented_special_is_allowed(special: str) -> None:
    assert complexity_fault(f"abcdefg1{special}") is None


@pytest.mark.parametrize("other", [*"%'\"[]; \t\n", "é", "密", "\u0661", "\x00"])
def test_any_other_character_is_refused(other: str) -> None:
    fault = complexity_fault(f"Abcdefg1{other}")
    assert fault is not None
    assert "Abcdefg1" not in fault


@pytest.mark.parametrize("password", ["Abcde1!", "Aa1" + "x" * 62, "", "abcdefgh", "abcdefg1", "ABCDEFG1"])
def test_too_short_too_long_or_too_plain_is_refused(password: str) -> None:
    assert complexity_fault(password) is not None


def test_a_hash_fits_its_password_only() -> None:
    kept = hash_password("Abcdef12")
    assert kept.startswith("$argon2id$")
    assert "m=19456,t=2,p=1" in kept
    assert is_password("Abcdef12", kept)
    assert not is_password("Abcdef13", kept)
    assert kept != hash_password("Abcdef12")


def test_with_nothing_kept_no_password_fits() -> None:
    assert not is_password("", None)
    assert not is_password("Abcdef12", None)
    assert not is_password("Abcdef12", "no hash")


def test_generated_passwords_fit_the_rule_and_differ() -> None:
    made = {generate_password() for _ in range(50)}
    assert len(made) == 50
    assert all(complexity_fault(password) is None for password in made)


def test_digests_and_comparison() -> None:
    assert sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert same("a", "a")
    assert not same("a", "ä")
