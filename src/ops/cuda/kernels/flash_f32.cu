// Attention of whole sequences in f32: the kernels of flash.cuh for each head size.

#include "flash.cuh"

FLASH(float, f32, 16)
FLASH(float, f32, 32)
FLASH(float, f32, 64)
FLASH(float, f32, 80)
FLASH(float, f32, 96)
FLASH(float, f32, 128)
