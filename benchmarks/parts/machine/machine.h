/* The state of the machine, its number formats, its checks of every access and its counters. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES_OF_WARP 32
#define ALL 0xffffffffu
#define HEAD 3 /* words of an instruction before its operands: code, guard, length */
#define MOST_WARPS 32
#define WARPS_OF_GROUP 4

/* What goes wrong, in the order of run.py's FAULTS, and what a warp waits for. */
enum { FINE, OUT_OF_BOUNDS, MISALIGNED, DIVERGENT, DEADLOCK, OVERWRITTEN };
enum { RUNNING, AT_BARRIER, AT_GROUP, DONE };

typedef struct { int64_t slot, wide; uint64_t value; } Fill; /* a register that is the same everywhere */
/* A tensor's addresses and, if not null, what happened to each of its 32-byte sectors. */
enum { READ = 1, WRITTEN = 2 };
typedef struct { uint64_t from, to; uint8_t *touched; } Range;
/* Of one instruction: warps that issued it, lanes that took part and, with `counting`, the 32-byte
 * sectors of global memory or the cycles of shared memory that it took. */
typedef struct { int64_t warps, lanes, units; } Count;

typedef struct {
    const int32_t *words;
    const uint64_t *parameters;
    const Fill *fills;
    const Range *ranges;
    Count *counts; /* by word */
    int64_t n_fills, n_ranges, slots, warps, shared, late, counting;
    int64_t grid[3];
    /* The answer: */
    int64_t fault, word, program[3], thread, bytes;
    uint64_t address;
} Launch;

/* What was started and is not done: a copy of one lane, or a warpgroup's product. */
typedef struct {
    int64_t group;
    uint64_t from, a, b, sum;
    uint32_t to;
    int32_t size, read, word, keep;
} Pending;
typedef struct { Pending *items; int64_t n, room, group; } Queue;

typedef struct {
    char *registers;
    int word, state, waits_at;
    uint32_t live, active;
    int next[LANES_OF_WARP]; /* where each lane goes on, while the lanes are apart */
    Queue copies;
} Warp;

typedef struct {
    Launch *launch;
    uint8_t *shared;
    int64_t program[3];
    Warp warps[MOST_WARPS];
    Queue products[MOST_WARPS / WARPS_OF_GROUP];
} Block;

/* Operand i of the instruction at `at`, and the register in it. */
#define WORD(i) (at[HEAD + (i)])
#define SLOT(s) ((void *)(registers + (int64_t)(s) * LANES_OF_WARP * 4))
#define REGISTER(i) SLOT(WORD(i))

static inline float as_float(uint32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
static inline uint32_t as_bits(float x) { uint32_t bits; memcpy(&bits, &x, 4); return bits; }
static inline float from_bf16(uint16_t x) { return as_float((uint32_t)x << 16); }
static inline uint16_t to_bf16(float x) {
    uint32_t bits = as_bits(x);
    return x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static inline float from_f16(uint16_t bits) { _Float16 x; memcpy(&x, &bits, 2); return x; }
static inline uint16_t to_f16(float x) {
    _Float16 half = (_Float16)x;
    uint16_t bits;
    memcpy(&bits, &half, 2);
    return bits;
}
static inline float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }
/* `length` bits of x from `position` on, as an unsigned or a signed number. */
static inline uint32_t u_field(uint32_t x, uint32_t position, uint32_t length) {
    return (uint64_t)x >> position & (((uint64_t)1 << length) - 1);
}
static inline int32_t s_field(int32_t x, uint32_t position, uint32_t length) {
    return length == 0 ? 0 : (int64_t)((uint64_t)x << (64 - position - length)) >> (64 - length);
}
static inline uint32_t permuted(uint32_t low, uint32_t high, uint32_t selector) {
    uint64_t bytes = (uint64_t)high << 32 | low;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        int8_t byte = bytes >> 8 * (selector >> 4 * i & 7);
        if (selector >> 4 * i & 8) byte = byte < 0 ? -1 : 0;
        result |= (uint32_t)(uint8_t)byte << 8 * i;
    }
    return result;
}

static int fail(Block *block, const Warp *warp, int fault, int lane, uint64_t address, int bytes) {
    Launch *launch = block->launch;
    launch->fault = fault;
    launch->word = warp->word;
    memcpy(launch->program, block->program, sizeof launch->program);
    launch->thread = (warp - block->warps) * LANES_OF_WARP + lane;
    launch->address = address;
    launch->bytes = bytes;
    return 0;
}
static int global_ok(Block *block, Warp *warp, int lane, uint64_t address, int bytes, int align,
                     int how) {
    const Range *range = block->launch->ranges, *end = range + block->launch->n_ranges;
    if (address % align) return fail(block, warp, MISALIGNED, lane, address, bytes);
    for (; range < end; range++) {
        if (address < range->from || address + bytes > range->to) continue;
        if (range->touched) range->touched[(address - range->from) / 32] |= how;
        return 1;
    }
    return fail(block, warp, OUT_OF_BOUNDS, lane, address, bytes);
}
static int shared_ok(Block *block, Warp *warp, int lane, uint32_t address, int bytes) {
    if (address % bytes) return fail(block, warp, MISALIGNED, lane, address, bytes);
    if ((uint64_t)address + bytes <= (uint64_t)block->launch->shared) return 1;
    return fail(block, warp, OUT_OF_BOUNDS, lane, address, bytes);
}

/* Different 32-byte sectors that a warp's accesses of up to 16 bytes touch. */
static int sectors(const uint64_t *address, uint32_t lanes, int bytes) {
    uint64_t seen[LANES_OF_WARP];
    int n = 0;
    for (int l = 0; l < LANES_OF_WARP; l++) {
        int i = n;
        if (!(lanes >> l & 1)) continue;
        while (i > 0 && seen[i - 1] != address[l] / 32) i--;
        if (i == 0) seen[n++] = address[l] / 32;
    }
    return n;
}
/* Cycles of shared memory: 128 bytes go together, different words of one bank one by one. */
static int cycles(const uint64_t *address, uint32_t lanes, int bytes) {
    int together = bytes <= 4 ? 32 : 128 / bytes, total = 0;
    for (int first = 0; first < LANES_OF_WARP; first += together) {
        uint64_t words[32][LANES_OF_WARP];
        int n[32] = {0}, most = 0;
        for (int l = first; l < first + together; l++) {
            if (!(lanes >> l & 1)) continue;
            for (uint64_t word = address[l] / 4; word <= (address[l] + bytes - 1) / 4; word++) {
                int bank = word % 32, i = n[bank];
                while (i > 0 && words[bank][i - 1] != word) i--;
                if (i == 0) words[bank][n[bank]++] = word;
                if (n[bank] > most) most = n[bank];
            }
        }
        total += most;
    }
    return total;
}

static Pending *push(Queue *queue) {
    if (queue->n == queue->room) {
        queue->room = queue->room ? 2 * queue->room : 256;
        queue->items = realloc(queue->items, queue->room * sizeof(Pending));
    }
    Pending *item = queue->items + queue->n++;
    item->group = queue->group;
    return item;
}
/* How many items are of any but the newest `keep` committed groups. */
static int64_t due(const Queue *queue, int64_t keep) {
    int64_t n = 0;
    while (n < queue->n && queue->items[n].group < queue->group - keep) n++;
    return n;
}
static void remove_first(Queue *queue, int64_t n) {
    queue->n -= n;
    memmove(queue->items, queue->items + n, queue->n * sizeof(Pending));
}
