/* Tensor cores: 16-bit operands, fp32 sums. */

static inline float from_half(uint16_t x, int bf16) { return bf16 ? from_bf16(x) : from_f16(x); }

/* mma.sync.m16n8k16. Operands: bf16, D (4 registers), A (4), B (2), C (4). Lane l = 4 g + k holds,
 * of each 8 x 8 quarter, entries (g, 2 k) and (g, 2 k + 1); of B their transposes. */
static void multiply(char *registers, const int32_t *at) {
    float a[16][16], b[16][8], d[16][8] = {0};
    int bf16 = WORD(0);
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < LANES_OF_WARP; l++)
            for (int e = 0; e < 2; e++) {
                int g = l / 4, k = 2 * (l % 4) + e;
                a[g + i % 2 * 8][k + i / 2 * 8] =
                    from_half(((uint16_t *)REGISTER(5 + i))[2 * l + e], bf16);
                if (i < 2) b[k + i * 8][g] = from_half(((uint16_t *)REGISTER(9 + i))[2 * l + e], bf16);
            }
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < 8; j++) d[i][j] += a[i][k] * b[k][j];
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < LANES_OF_WARP; l++)
            d[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2] += ((float *)REGISTER(11 + i))[l];
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < LANES_OF_WARP; l++)
            ((float *)REGISTER(1 + i))[l] = d[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2];
}

/* Shared address of entry (i, k) of an operand of wgmma from its matrix descriptor (PTX ISA,
 * "Asynchronous warpgroup level matrix shared memory layout"): start, leading and stride offset in
 * units of 16 bytes, swizzle 1, 2, 3 for rows of 128, 64, 32 bytes, 0 for 8 x 16 bytes as they are.
 * Transposed: i runs along the rows and k across them. */
static uint32_t entry_address(uint64_t descriptor, int i, int k, int transposed) {
    uint32_t start = (descriptor & 0x3fff) << 4, leading = (descriptor >> 16 & 0x3fff) << 4;
    uint32_t stride = (descriptor >> 32 & 0x3fff) << 4, kind = descriptor >> 62;
    uint32_t row = kind == 0 ? 16 : 256 >> kind, along = row / 2, x;
    if (transposed) x = i / along * leading + i % along * 2 + k / 8 * stride + k % 8 * row;
    else if (kind == 0) x = i / 8 * stride + i % 8 * 16 + k / 8 * leading + k % 8 * 2;
    else x = i / 8 * stride + i % 8 * row + k * 2;
    x += start;
    return kind == 0 ? x : x ^ (x >> 3 & (row - 16));
}
/* Entries of an operand, rows x 16, in pieces of 8 that lie together; `sum` is a checksum of them. */
static int load_operand(Block *block, Warp *warp, uint64_t descriptor, int rows, int transposed,
                        int bf16, float (*into)[16], uint64_t *sum) {
    for (int piece = 0; piece < 2 * rows; piece++) {
        int i = transposed ? piece / 16 * 8 : piece / 2, k = transposed ? piece % 16 : piece % 2 * 8;
        uint32_t address = entry_address(descriptor, i, k, transposed);
        uint16_t values[8];
        uint64_t parts[2];
        if (!shared_ok(block, warp, 0, address, 16)) return 0;
        memcpy(values, block->shared + address, 16);
        memcpy(parts, values, 16);
        *sum = (*sum ^ parts[0]) * 0x9e3779b97f4a7c15u + parts[1];
        for (int e = 0; e < 8; e++)
            into[transposed ? i + e : i][transposed ? k : k + e] = from_half(values[e], bf16);
    }
    return 1;
}

/* wgmma.m64nNk16 of the warpgroup that starts at `warp`. Operands: bf16, A in registers, A and B
 * transposed, scale of D, B, A (4 registers or a descriptor), D (N / 2 registers, as of mma.sync
 * for each 16 rows and 8 columns). */
enum { BF16, A_IN_REGISTERS, A_TRANSPOSED, B_TRANSPOSED, SCALE, B, A };
static float left[64][16], right[256][16]; /* the operands */

static int columns_of(const int32_t *at) {
    return 2 * (at[2] - HEAD - A - (WORD(A_IN_REGISTERS) ? 4 : 1));
}
/* What shared memory has of the operands; 0 if it fails. */
static int load_operands(Block *block, Warp *warp, const Pending *product, uint64_t *sum) {
    const int32_t *at = block->launch->words + product->word;
    int bf16 = WORD(BF16);
    return load_operand(block, warp, product->b, columns_of(at), WORD(B_TRANSPOSED), bf16, right, sum)
        && (WORD(A_IN_REGISTERS)
            || load_operand(block, warp, product->a, 64, WORD(A_TRANSPOSED), bf16, left, sum));
}

static int multiply_async(Block *block, Warp *warp, Pending *product) {
    const int32_t *at = block->launch->words + product->word;
    int columns = columns_of(at), first = A + (WORD(A_IN_REGISTERS) ? 4 : 1);
    static float across[16][256], d[64][256];
    product->sum = 0;
    if (!load_operands(block, warp, product, &product->sum)) return 0;
    for (int w = 0; w < WARPS_OF_GROUP && WORD(A_IN_REGISTERS); w++)
        for (int i = 0; i < 4; i++) {
            char *registers = warp[w].registers;
            const uint16_t *values = REGISTER(A + i);
            for (int x = 0; x < 2 * LANES_OF_WARP; x++)
                left[16 * w + x / 8 + i % 2 * 8][x % 8 + i / 2 * 8] =
                    from_half(values[x], WORD(BF16));
        }
    for (int j = 0; j < columns; j++)
        for (int k = 0; k < 16; k++) across[k][j] = right[j][k];
    for (int i = 0; i < 64; i++) {
        memset(d[i], 0, columns * sizeof(float));
        for (int k = 0; k < 16; k++)
            for (int j = 0; j < columns; j++) d[i][j] += left[i][k] * across[k][j];
    }
    for (int w = 0; w < WARPS_OF_GROUP; w++)
        for (int i = 0; i < columns / 2; i++) {
            char *registers = warp[w].registers;
            float *sums = REGISTER(first + i);
            for (int l = 0; l < LANES_OF_WARP; l++) {
                float value = d[16 * w + l / 4 + i / 2 % 2 * 8][i / 4 * 8 + 2 * (l % 4) + i % 2];
                sums[l] = product->keep ? sums[l] + value : value;
            }
        }
    return 1;
}

/* A commit multiplies what was started since the last one: in registers wgmma looks as if it were
 * done in order, since ptxas waits where it must. Shared memory may be read until the wait, so
 * what was read must still be there then. */
static int commit_products(Block *block, Warp *warp, Queue *queue) {
    for (int64_t i = 0; i < queue->n; i++) {
        if (queue->items[i].group < queue->group) continue;
        if (!multiply_async(block, warp, queue->items + i)) return 0;
    }
    queue->group++;
    return 1;
}
static int finish_products(Block *block, Warp *warp, Queue *queue, int keep) {
    int64_t n = due(queue, keep);
    for (int64_t i = 0; i < n; i++) {
        uint64_t sum = 0;
        warp->word = queue->items[i].word;
        if (!load_operands(block, warp, queue->items + i, &sum)) return 0;
        if (sum != queue->items[i].sum) return fail(block, warp, OVERWRITTEN, 0, 0, 0);
    }
    remove_first(queue, n);
    return 1;
}
