/* Loads, stores, asynchronous copies, matrices of 8 x 8, and exchanges between lanes. */

/* ld.param; parameter i is at address 8 i. Operands: bytes, signed, wide, result, address, offset. */
static void load_parameter(const uint64_t *parameters, char *registers, const int32_t *at,
                           uint32_t m) {
    int unused = 64 - 8 * WORD(0);
    for (int l = 0; l < LANES_OF_WARP; l++) {
        uint64_t value = parameters[(((uint32_t *)REGISTER(4))[l] + WORD(5)) / 8] << unused;
        value = WORD(1) ? (uint64_t)((int64_t)value >> unused) : value >> unused;
        if (!(m >> l & 1)) continue;
        if (WORD(2)) ((uint64_t *)REGISTER(3))[l] = value;
        else ((uint32_t *)REGISTER(3))[l] = value;
    }
}

/* Operands: bytes of an element, wide registers, address, offset, elements. */
static int access_memory(Block *block, Warp *warp, const int32_t *at, uint32_t m, int global,
                         int store) {
    char *registers = warp->registers;
    int size = WORD(0), n = at[2] - HEAD - 4, step = WORD(1) ? 8 : 4;
    uint64_t address[LANES_OF_WARP];
    for (int l = 0; l < LANES_OF_WARP; l++) {
        address[l] = global ? ((uint64_t *)REGISTER(2))[l] + WORD(3)
                            : (uint32_t)(((uint32_t *)REGISTER(2))[l] + WORD(3));
        if (!(m >> l & 1)) continue;
        if (!(global ? global_ok(block, warp, l, address[l], n * size, n * size,
                                store ? WRITTEN : READ)
                     : shared_ok(block, warp, l, address[l], n * size)))
            return 0;
    }
    if (block->launch->counting)
        block->launch->counts[warp->word].units +=
            global ? sectors(address, m, n * size) : cycles(address, m, n * size);
    for (int i = 0; i < n; i++) {
        if (WORD(4 + i) < 0) continue;
        char *lanes = REGISTER(4 + i);
        for (int l = 0; l < LANES_OF_WARP; l++) {
            if (!(m >> l & 1)) continue;
            uint8_t *memory = global ? (uint8_t *)address[l] : block->shared + address[l];
            if (store) {
                memcpy(memory + i * size, lanes + l * step, size);
            } else {
                memset(lanes + l * step, 0, step);
                memcpy(lanes + l * step, memory + i * size, size);
            }
        }
    }
    return 1;
}

static void copy(Block *block, const Pending *c) {
    memcpy(block->shared + c->to, (const void *)c->from, c->read);
    memset(block->shared + c->to + c->read, 0, c->size - c->read);
}
/* cp.async. Operands: bytes, target, offset, source, offset, bytes to read; the rest is zeros. */
static int start_copies(Block *block, Warp *warp, const int32_t *at, uint32_t m) {
    char *registers = warp->registers;
    const uint32_t *to = REGISTER(1), *read = REGISTER(5);
    const uint64_t *from = REGISTER(3);
    uint64_t source[LANES_OF_WARP];
    uint32_t reading = 0;
    for (int l = 0; l < LANES_OF_WARP; l++) {
        if (!(m >> l & 1)) continue;
        Pending *c = push(&warp->copies);
        c->to = to[l] + WORD(2);
        c->size = WORD(0);
        c->read = read[l] < (uint32_t)c->size ? (int32_t)read[l] : c->size;
        c->from = source[l] = from[l] + WORD(4);
        if (!shared_ok(block, warp, l, c->to, c->size)) return 0;
        if (c->read && !global_ok(block, warp, l, c->from, c->read, c->size, READ)) return 0;
        if (c->read) reading |= 1u << l;
        if (!block->launch->late) copy(block, &warp->copies.items[--warp->copies.n]);
    }
    if (block->launch->counting)
        block->launch->counts[warp->word].units += sectors(source, reading, WORD(0));
    return 1;
}
static void finish_copies(Block *block, Warp *warp, int keep) {
    int64_t n = due(&warp->copies, keep);
    for (int64_t i = 0; i < n; i++) copy(block, warp->copies.items + i);
    remove_first(&warp->copies, n);
}

/* ldmatrix, stmatrix. Operands: transposed, address, offset, matrices. Lane l holds entries
 * (l / 4, 2 (l % 4) + {0, 1}) of matrix i, whose rows are at the addresses of lanes 8 i to 8 i + 7;
 * if transposed, the same entries of its transpose. */
static int access_matrices(Block *block, Warp *warp, const int32_t *at, int store) {
    char *registers = warp->registers;
    const uint32_t *base = REGISTER(1);
    int n = at[2] - HEAD - 3, transposed = WORD(0);
    uint32_t loaded[4][LANES_OF_WARP];
    uint64_t address[LANES_OF_WARP];
    for (int l = 0; l < 8 * n; l++) {
        address[l] = (uint32_t)(base[l] + WORD(2));
        if (!shared_ok(block, warp, l, address[l], 16)) return 0;
    }
    if (block->launch->counting)
        block->launch->counts[warp->word].units += cycles(address, ALL >> (32 - 8 * n), 16);
    for (int i = 0; i < n; i++)
        for (int l = 0; l < LANES_OF_WARP; l++)
            for (int e = 0; e < 2; e++) {
                int row = l / 4, column = 2 * (l % 4) + e;
                uint8_t *entry = block->shared + (transposed ? address[8 * i + column] + 2 * row
                                                             : address[8 * i + row] + 2 * column);
                if (store) memcpy(entry, (uint16_t *)REGISTER(3 + i) + 2 * l + e, 2);
                else memcpy((uint16_t *)loaded[i] + 2 * l + e, entry, 2);
            }
    for (int i = 0; i < n && !store; i++) memcpy(REGISTER(3 + i), loaded[i], sizeof loaded[i]);
    return 1;
}

/* shfl. Operands: kind (bfly, idx, up, down), result, value, distance. */
static void shuffle(char *registers, const int32_t *at) {
    uint32_t before[LANES_OF_WARP];
    const uint32_t *b = REGISTER(3);
    uint32_t *d = REGISTER(1);
    memcpy(before, REGISTER(2), sizeof before);
    for (int l = 0; l < LANES_OF_WARP; l++) {
        int by = b[l] & 31;
        int from = WORD(0) == 0 ? l ^ by : WORD(0) == 1 ? by : WORD(0) == 2 ? l - by : l + by;
        d[l] = before[from < 0 || from > 31 ? l : from];
    }
}

/* mov between a register and its parts. Operands: wide, the register, the parts. */
static void repack(char *registers, const int32_t *at, uint32_t m, int join) {
    int is_wide = WORD(0), n = at[2] - HEAD - 2, bits = (is_wide ? 64 : 32) / n;
    uint64_t mask = ((uint64_t)1 << bits) - 1;
    for (int l = 0; l < LANES_OF_WARP; l++) {
        if (!(m >> l & 1)) continue;
        uint64_t *whole64 = (uint64_t *)REGISTER(1) + l;
        uint32_t *whole32 = (uint32_t *)REGISTER(1) + l;
        uint64_t value = join ? 0 : is_wide ? *whole64 : *whole32;
        for (int i = 0; i < n; i++) {
            if (WORD(2 + i) < 0) continue;
            uint32_t *part = (uint32_t *)REGISTER(2 + i) + l;
            if (join) value |= (*part & mask) << i * bits;
            else *part = value >> i * bits & mask;
        }
        if (join && is_wide) *whole64 = value;
        else if (join) *whole32 = value;
    }
}
