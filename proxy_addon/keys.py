"""From the config's [wallet] to a signer: whose keys are here, and from where."""

from __future__ import annotations

from proxy_addon import keystore
from proxy_addon.config import ConfigError, Settings
from proxy_addon.config_tables import KeySource
from proxy_addon.hardening import harden
from proxy_addon.secret_sources import source
from proxy_addon.signer import KeyRejected, Signer


def load_signer(settings: Settings) -> Signer:
    """The signer that the config names. From here on the process keeps its memory to itself.

    With `voucher_key` and no key of the payer's it can spend what is in channels that exist, and nothing else.
    Raises `ConfigError` if the config names no key, or keys that do not fit; `KeystoreError`, `SecretUnavailable`
    if one is not to be had.
    """
    harden()
    wallet = settings.wallet
    voucher_key = None if wallet.voucher_key is None else key_of(wallet.voucher_key, "wallet.voucher_key")
    try:
        if wallet.payer is not None and not wallet.names_a_key:
            if voucher_key is None:
                raise ConfigError(
                    "[wallet].payer is set without a key: name the payer's key, or [wallet.voucher_key]"
                )
            return Signer.of_vouchers(voucher_key, payer=wallet.payer)
        signer = Signer(key_of(wallet, "wallet"), voucher_key)
    except KeyRejected as error:
        raise keystore.KeystoreError(str(error)) from None
    if wallet.payer is not None and wallet.payer != signer.address:
        raise ConfigError(f"[wallet].payer is {wallet.payer}, but the key is that of {signer.address}")
    return signer


def key_of(names: KeySource, table: str) -> bytes:
    """The 32 bytes of one key. Raises as `load_signer` does; `table` is its place in the config, for errors."""
    if names.private_key_env is not None:
        return keystore.key_from_env(names.private_key_env)
    if names.private_key_from is not None:
        return keystore.key_from(source(names.private_key_from, "the private key in hex"))
    if names.keystore is None:
        raise ConfigError(
            f"the config names no key: set [{table}].keystore, private_key_env or private_key_from"
        )
    if names.password_file is not None:
        password = keystore.password_from_file(names.password_file)
    elif names.password_from is not None:
        password = source(names.password_from, f"the password of {names.keystore}")
    elif names.password_env is not None:
        password = keystore.password_from_env(names.password_env)
    else:
        raise ConfigError(
            f"the config names no password: set [{table}].password_env, password_file or password_from"
        )
    return keystore.key_from_keystore(names.keystore, password)
