"""Grey values of any depth to 8 bits; `README.md`, "Grey values", is the rule in words."""

from __future__ import annotations

import numpy as np

_DEPTHS = (8, 10, 12, 14, 16)  # bits that cameras and detectors have


def eight_bits(brightness: np.ndarray) -> np.ndarray:
    """0 (black) to 1 (white) as whole numbers from 0 to 255, halves rounded up."""
    return np.floor(brightness * 255 + 0.5).astype(np.uint8)


def stretched(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Brightness of values: `low` and what is below it black, `high` and what is above it white.

    Black throughout where the two are equal.
    """
    span = high - low
    brightness = (values.astype(np.float64) - low) / span if span > 0 else np.zeros(values.shape)
    return np.clip(np.nan_to_num(brightness), 0.0, 1.0)


def range_of(values: np.ndarray) -> tuple[float, float]:
    """Least and greatest finite value; 0 and 0 where there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def range_of_bits(bits: int, *, signed: bool = False) -> tuple[int, int]:
    """Least and greatest whole number of so many bits."""
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)


def depth_of(greatest: int) -> int:
    """Bits of samples that come in 16-bit words: the usual depth that holds the greatest one."""
    return next(bits for bits in _DEPTHS if greatest < 1 << bits)


def windowed(
    values: np.ndarray, center: float, width: float, function: str = "LINEAR"
) -> np.ndarray:
    """Brightness of values in a window.

    Source: DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3.
    """
    values = values.astype(np.float64)
    match function:
        case "SIGMOID":
            # 1 / (1 + exp(-4 x)), which overflows far from the centre
            return (1 + np.tanh(2 * (values - center) / width)) / 2
        case "LINEAR_EXACT":
            return stretched(values, center - width / 2, center + width / 2)
        case _:
            half = (width - 1) / 2
            if half == 0:
                return (values > center - 0.5).astype(np.float64)
            return stretched(values, center - 0.5 - half, center - 0.5 + half)
