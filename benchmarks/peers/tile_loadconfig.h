// GCC 12 declares that `ldtilecfg` reads 8 bytes through a pointer to void*, so its optimizer drops the stores to the other 56,
// and llama.cpp's AMX kernels fault on a configuration that was never written. This says what is read.
#include <immintrin.h>
#define _tile_loadconfig(config) __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(config)))
