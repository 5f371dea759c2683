/* Runs a translated kernel (translate.py) on the host, program by program.
 *
 * A warp runs alone until it must wait for others, at a barrier of the block or of its warpgroup;
 * so what one warp leaves in shared memory without a barrier, another misses in one of the two
 * orders of warps. `late` is the order, and the pace of copies (cp.async): 0, warps from first to
 * last and copies at once; 1, warps from last to first and copies as late as their waits allow.
 * Shared memory and registers hold NaN at first. The first access out of bounds or out of line, the
 * first barrier that some threads miss, the first operand of a wgmma that changes before it is
 * waited for, ends the run.
 */
#include "machine.h"
#include "memory.h"
#include "products.h"
#include "codes.h" /* by run.py: OP_label, ... after the numbers of the arithmetic */

/* All lanes, in a loop that the compiler turns into vector instructions, or those of m. */
#define LANES(...)                                                                               \
    if (m == ALL) {                                                                              \
        _Pragma("GCC ivdep") for (int l = 0; l < LANES_OF_WARP; l++) { __VA_ARGS__ }             \
    } else {                                                                                     \
        for (uint32_t left = m; left; left &= left - 1) { int l = __builtin_ctz(left); __VA_ARGS__ } \
    }
#include "arithmetic.h" /* by run.py: operations.c_functions */

static uint32_t guarded(char *registers, const int32_t *at, uint32_t active) {
    if (at[1] == 0) return active;
    const uint32_t *predicate = SLOT(abs(at[1]) - 1);
    uint32_t set = 0;
    for (int l = 0; l < LANES_OF_WARP; l++) set |= (uint32_t)(predicate[l] != 0) << l;
    return active & (at[1] < 0 ? ~set : set);
}

/* The active lanes go on, `some` of them there and the others here. Lanes that are apart run in
 * the order of the code, so that they meet again where their paths do. */
static void go(Warp *warp, uint32_t some, int there, int here) {
    int together = warp->active == warp->live, first = INT32_MAX;
    if (together && (some == 0 || some == warp->active)) {
        warp->word = some ? there : here;
        return;
    }
    for (int l = 0; l < LANES_OF_WARP; l++) {
        if (warp->active >> l & 1) warp->next[l] = some >> l & 1 ? there : here;
        if (warp->live >> l & 1 && warp->next[l] < first) first = warp->next[l];
    }
    warp->word = first;
    warp->active = 0;
    for (int l = 0; l < LANES_OF_WARP; l++)
        if (warp->live >> l & 1 && warp->next[l] == first) warp->active |= 1u << l;
}

static int waits(Warp *warp, const int32_t *at, int state) {
    warp->state = state;
    warp->waits_at = warp->word;
    warp->word += at[2];
    return 1;
}

/* Run one warp until it waits, ends or fails; 0 if it failed. */
static int run_warp(Block *block, Warp *warp) {
    Launch *launch = block->launch;
    char *registers = warp->registers;
    int number = warp - block->warps;
    for (;;) {
        const int32_t *at = launch->words + warp->word;
        uint32_t m = guarded(registers, at, warp->active);
        Count *count = launch->counts + warp->word;
        count->warps++;
        count->lanes += __builtin_popcount(m);
        if (at[0] >= OP_barrier && m != warp->live) /* what a whole warp must execute together */
            return fail(block, warp, DIVERGENT, 0, 0, 0);
        switch (at[0]) {
        default:
            ARITHMETIC[at[0]](registers, at, m);
            break;
        case OP_label:
            go(warp, 0, 0, warp->word + at[2]);
            continue;
        case OP_branch:
            go(warp, m, WORD(0), warp->word + at[2]);
            continue;
        case OP_exit:
            warp->live &= ~m;
            warp->active &= ~m;
            if (warp->live == 0) {
                warp->state = DONE;
                return 1;
            }
            go(warp, 0, 0, warp->word + at[2]);
            continue;
        case OP_nothing:
            break;
        case OP_load_parameter:
            load_parameter(launch->parameters, registers, at, m);
            break;
        case OP_load_global:
        case OP_store_global:
            if (!access_memory(block, warp, at, m, 1, at[0] == OP_store_global)) return 0;
            break;
        case OP_load_shared:
        case OP_store_shared:
            if (!access_memory(block, warp, at, m, 0, at[0] == OP_store_shared)) return 0;
            break;
        case OP_copy:
            if (!start_copies(block, warp, at, m)) return 0;
            break;
        case OP_split:
        case OP_join:
            repack(registers, at, m, at[0] == OP_join);
            break;
        case OP_commit:
            warp->copies.group++;
            break;
        case OP_wait:
            finish_copies(block, warp, WORD(0));
            break;
        case OP_load_matrix:
        case OP_store_matrix:
            if (!access_matrices(block, warp, at, at[0] == OP_store_matrix)) return 0;
            break;
        case OP_shuffle:
            shuffle(registers, at);
            break;
        case OP_multiply:
            multiply(registers, at);
            break;
        case OP_multiply_async:
            if (number % WARPS_OF_GROUP == 0) {
                Pending *product = push(block->products + number / WARPS_OF_GROUP);
                product->word = warp->word;
                product->keep = *(uint32_t *)REGISTER(SCALE) != 0;
                product->b = *(uint64_t *)REGISTER(B);
                product->a = *(uint64_t *)REGISTER(A);
            }
            break;
        case OP_commit_async:
        case OP_wait_async:
            return waits(warp, at, AT_GROUP);
        case OP_barrier:
            return waits(warp, at, AT_BARRIER);
        }
        warp->word += at[2];
    }
}

/* All warps of a warpgroup are at `at`: commit, or wait for, its products. */
static int meet(Block *block, Warp *first, const int32_t *at) {
    Queue *queue = block->products + (first - block->warps) / WARPS_OF_GROUP;
    int next = first->word;
    if (!(at[0] == OP_commit_async ? commit_products(block, first, queue)
                                   : finish_products(block, first, queue, WORD(0))))
        return 0;
    first->word = next;
    return 1;
}

/* Whether the warps first to last all wait in `state` at one place; those that ended do not count
 * at a barrier. */
static int together(const Block *block, int first, int last, int state) {
    int at = -1;
    for (int w = first; w < last; w++) {
        const Warp *warp = block->warps + w;
        if (warp->state == DONE && state == AT_BARRIER) continue;
        if (warp->state != state || (at >= 0 && warp->waits_at != at)) return 0;
        at = warp->waits_at;
    }
    return at >= 0;
}

static int run_block(Block *block) {
    int n = block->launch->warps, group = WARPS_OF_GROUP, done = 0;
    while (!done) {
        int moved = 0;
        done = 1;
        for (int i = 0; i < n; i++) {
            Warp *warp = block->warps + (block->launch->late ? n - 1 - i : i);
            if (warp->state == RUNNING && ++moved && !run_warp(block, warp)) return 0;
            done &= warp->state == DONE;
        }
        for (int w = 0; w + group <= n; w += group) {
            Warp *first = block->warps + w;
            if (!together(block, w, w + group, AT_GROUP)) continue;
            moved = 1;
            if (!meet(block, first, block->launch->words + first->waits_at)) return 0;
            for (int i = 0; i < group; i++) first[i].state = RUNNING;
        }
        if (together(block, 0, n, AT_BARRIER)) {
            moved = 1;
            for (int w = 0; w < n; w++)
                if (block->warps[w].state == AT_BARRIER) block->warps[w].state = RUNNING;
        }
        if (!moved && !done) {
            Warp *warp = block->warps;
            while (warp->state == DONE) warp++;
            warp->word = warp->waits_at;
            return fail(block, warp, DEADLOCK, 0, 0, 0);
        }
    }
    for (int w = 0; w + group <= n; w += group)
        if (!finish_products(block, block->warps + w, block->products + w / group, 0)) return 0;
    return 1;
}

static void set_register(Block *block, int64_t slot, int wide, uint64_t value) {
    for (int w = 0; w < block->launch->warps; w++) {
        char *registers = block->warps[w].registers;
        for (int l = 0; l < LANES_OF_WARP; l++) {
            if (wide) ((uint64_t *)SLOT(slot))[l] = value;
            else ((uint32_t *)SLOT(slot))[l] = value;
        }
    }
}

static void start_block(Block *block) {
    memset(block->shared, 0xff, block->launch->shared);
    for (int i = 0; i < 3; i++) set_register(block, 1 + i, 0, block->program[i]);
    for (int w = 0; w < block->launch->warps; w++) {
        Warp *warp = block->warps + w;
        warp->word = warp->state = 0;
        warp->live = warp->active = ALL;
        warp->copies.n = warp->copies.group = 0;
        block->products[w / WARPS_OF_GROUP].n = block->products[w / WARPS_OF_GROUP].group = 0;
    }
}

/* Run the whole grid, or up to the first fault. */
void run(Launch *launch) {
    Block *block = calloc(1, sizeof(Block));
    size_t bytes = launch->slots * LANES_OF_WARP * 4;
    block->launch = launch;
    block->shared = malloc(launch->shared + 1);
    for (int w = 0; w < launch->warps; w++) {
        char *registers = block->warps[w].registers = memset(aligned_alloc(128, bytes), 0xff, bytes);
        for (int l = 0; l < LANES_OF_WARP; l++) ((uint32_t *)SLOT(0))[l] = w * LANES_OF_WARP + l;
    }
    for (int i = 0; i < 3; i++) set_register(block, 4 + i, 0, launch->grid[i]);
    for (int64_t i = 0; i < launch->n_fills; i++)
        set_register(block, launch->fills[i].slot, launch->fills[i].wide, launch->fills[i].value);
    int64_t *p = block->program, fine = 1;
    for (p[2] = 0; p[2] < launch->grid[2] && fine; p[2]++)
        for (p[1] = 0; p[1] < launch->grid[1] && fine; p[1]++)
            for (p[0] = 0; p[0] < launch->grid[0] && fine; p[0]++) {
                start_block(block);
                fine = run_block(block);
            }
    for (int w = 0; w < MOST_WARPS; w++) {
        free(block->warps[w].registers);
        free(block->warps[w].copies.items);
        if (w % WARPS_OF_GROUP == 0) free(block->products[w / WARPS_OF_GROUP].items);
    }
    free(block->shared);
    free(block);
}
