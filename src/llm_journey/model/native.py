"""Which number types a device multiplies in hardware, and not by way of float32."""

import torch

# What a processor must have, in torch.cpu.get_capabilities()' words (x86, Arm).
_CPU_FEATURES = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16"),
}


def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `device` multiplies matrices of this type in hardware."""
    if dtype == torch.float32:
        return True
    if device.type == "cuda":
        return dtype == torch.float16 or bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return any(capabilities.get(feature, False) for feature in _CPU_FEATURES[dtype])
