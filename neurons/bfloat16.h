/* bfloat16 and float, the two functions that every kernel in C needs. */
#ifndef MAR_SNN_BFLOAT16_H
#define MAR_SNN_BFLOAT16_H

#include <stdint.h>
#include <string.h>

static inline float from_bf16(uint16_t narrow)
{
    const uint32_t bits = (uint32_t)narrow << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint16_t to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint32_t even = bits + 0x7fff + (bits >> 16 & 1); /* to the nearest */
    return value != value ? 0x7fc0 : even >> 16;
}

#endif
