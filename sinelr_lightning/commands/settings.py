"""What two configurations differ in."""

from typing import Any

__all__ = ["differences", "settings"]

# What differs from run to run without being a setting.
NOT_SETTINGS = ("ckpt_path", "name", "runs_dir", "config", "weights_only", "return_predictions")


def differences(stored: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """List the settings that differ, one line each: `model.linear.rank is 4 (8 in the checkpoint)`."""
    before, after = settings(stored), settings(now)
    return [
        f"{key.replace('.init_args', '')} is {after.get(key, 'not set')}"
        f" ({before.get(key, 'not set')} in the checkpoint)"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def settings(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten the settings of a configuration: {"model": {"width": 8}} gives {"model.width": 8}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if not prefix and key in NOT_SETTINGS:
            continue
        if isinstance(value, dict) and value:
            flat.update(settings(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
