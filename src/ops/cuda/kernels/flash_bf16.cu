// Attention of whole sequences in bf16: the kernels of flash.cuh for each head size.

#include "flash.cuh"

FLASH(__nv_bfloat16, bf16, 16)
FLASH(__nv_bfloat16, bf16, 32)
FLASH(__nv_bfloat16, bf16, 64)
FLASH(__nv_bfloat16, bf16, 80)
FLASH(__nv_bfloat16, bf16, 96)
FLASH(__nv_bfloat16, bf16, 128)
