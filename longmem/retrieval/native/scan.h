/* Queries against keys, panel by panel: which keys may be among the best, and a look at those.

   For COLS keys at a time (a panel, which stays in the first-level cache) and ROWS queries at a time (a tile, whose
   sums stay in registers), upper bounds of all inner products are made from short sketches of queries and keys
   (`bounds.h`). Only a pair whose bound reaches what the query's k best imply is looked at in full: its float32 product
   makes it a candidate or not (`best.h`). So selection reads no score that it throws away from memory. */

#ifndef LONGMEM_SCAN_H
#define LONGMEM_SCAN_H

#include <stdlib.h>

#include "best.h"
#include "bounds.h"

typedef struct {
    const float *queries, *query_sketches;
    rows keys, key_sketches;
    int64_t num_queries, dim, width, k, slots;
} problem;

/* Keys to look at: those of `ids`, or the first `size` where it is NULL. */
typedef struct {
    const int64_t *ids;
    int64_t size;
} list;

static inline int64_t id_of(list keys, int64_t place) { return keys.ids ? keys.ids[place] : place; }

/* The panels of a list: their codes, one panel after the other, and their bounds. */
typedef struct {
    uint8_t *codes;
    panel_bounds *bounds;
} panels;

static inline int64_t num_panels(int64_t num_keys) { return (num_keys + COLS - 1) / COLS; }

static inline int64_t codes_of_panel(shape sketch) { return COLS * sketch.width; }

/* A key to look at for the query in a slot. */
typedef struct {
    int64_t slot, id;
} visit;

enum { MOST_ROOMS = 32, CACHE_LINE = 64, AHEAD = 64 };

typedef struct {
    void *rooms[MOST_ROOMS];
    int num_rooms, short_of_memory;
    coded_queries coded; /* of all queries */
    /* of the queries of a scan, slot by slot, tile by tile */
    int32_t *groups;
    word *starts;
    query_limits limits;
    int64_t *rows;       /* of the queries in slots */
    float *thresholds;   /* theirs */
    uint64_t *passing;   /* a bit for each key of a panel whose bound reaches the threshold */
    int32_t *to_look_at; /* slots for which some do */
    hit *hits;
} workspace;

/* Memory that lives as long as the workspace, all zeros; NULL, and `short_of_memory`, where there is none. */
static void *room(workspace *in, int64_t bytes) {
    const int64_t whole = (bytes / CACHE_LINE + 1) * CACHE_LINE;
    void *all = aligned_alloc(CACHE_LINE, whole);
    in->rooms[in->num_rooms++] = all;
    if (all)
        memset(all, 0, whole);
    else
        in->short_of_memory = 1;
    return all;
}

static void leave(const workspace *in) {
    for (int each = 0; each < in->num_rooms; each++)
        free(in->rooms[each]);
}

static inline int64_t num_tiles(int64_t num_queries) { return (num_queries + ROWS - 1) / ROWS; }

/* Room for a search, and the codes of its queries. */
static workspace prepare(const problem *of) {
    const shape sketch = shape_of(of->width);
    const int64_t width = sketch.width, blocks = sketch.blocks, slots = num_tiles(of->num_queries) * ROWS + FLOATS;
    workspace in = {0};
    in.coded.groups = room(&in, of->num_queries * width / GROUP * sizeof *in.coded.groups);
    in.coded.starts = room(&in, of->num_queries * blocks * sizeof *in.coded.starts);
    in.coded.bounds = room(&in, of->num_queries * sizeof *in.coded.bounds);
    in.groups = room(&in, slots * width / GROUP * sizeof *in.groups);
    in.starts = room(&in, slots * blocks * sizeof *in.starts);
    in.limits.thresholds = room(&in, slots * sizeof(float));
    in.limits.lengths = room(&in, slots * sizeof(float));
    in.limits.rests = room(&in, slots * sizeof(float));
    in.limits.limits = room(&in, slots * sizeof *in.limits.limits);
    in.rows = room(&in, slots * sizeof *in.rows);
    in.thresholds = room(&in, slots * sizeof *in.thresholds);
    in.passing = room(&in, slots * sizeof *in.passing);
    in.to_look_at = room(&in, slots * sizeof *in.to_look_at);
    in.hits = room(&in, of->k * sizeof *in.hits);
    float *copy = room(&in, width * sizeof *copy);
    if (!in.short_of_memory)
        for (int64_t row = 0; row < of->num_queries; row++) {
            copy_padded(of->query_sketches + row * of->width, FLOAT32, of->width, width, copy);
            code_query(copy, sketch, in.coded, row);
        }
    return in;
}

/* Code some panels of a list. `copies` has room for a panel of padded keys. */
static void code_panels(const rows *key_sketches, int64_t width, list keys, int64_t first_panel, int64_t last_panel,
                        float *copies, panels into) {
    const shape sketch = shape_of(width);
    for (int64_t number = first_panel; number < last_panel; number++) {
        const float *of_keys[COLS];
        for (int64_t col = 0; col < COLS; col++) {
            const int64_t place = number * COLS + col;
            float *copy = copies + col * sketch.width;
            of_keys[col] = copy;
            if (place >= keys.size)
                memset(copy, 0, sketch.width * sizeof *copy);
            else if (width == sketch.width && key_sketches->kind == FLOAT32)
                of_keys[col] = row_of(key_sketches, id_of(keys, place));
            else
                copy_padded(row_of(key_sketches, id_of(keys, place)), key_sketches->kind, width, sketch.width, copy);
        }
        into.bounds[number] = code_panel(of_keys, sketch.width, into.codes + number * codes_of_panel(sketch));
    }
}

static inline void set_threshold(const workspace *in, int64_t slot, float threshold) {
    in->thresholds[slot] = threshold;
    set_query(in->limits, slot, in->coded.bounds[in->rows[slot]], threshold);
}

/* Lay the codes of queries out for tiles. */
static void put_queries(shape sketch, best **queue, int64_t num_queries, const workspace *in) {
    const int64_t num_groups = sketch.width / GROUP;
    for (int64_t slot = 0; slot < num_queries; slot++) {
        const int64_t number = slot / ROWS, place = slot % ROWS, row = queue[slot]->row;
        for (int64_t each = 0; each < num_groups; each++)
            in->groups[(number * num_groups + each) * ROWS + place] = in->coded.groups[row * num_groups + each];
        for (int64_t block = 0; block < sketch.blocks; block++)
            in->starts[(number * sketch.blocks + block) * ROWS + place] = in->coded.starts[row * sketch.blocks + block];
        in->rows[slot] = row;
        set_threshold(in, slot, queue[slot]->threshold);
    }
}

static inline tile tile_of(shape sketch, int64_t number, const workspace *in) {
    return (tile){in->groups + number * sketch.width / GROUP * ROWS, in->starts + number * sketch.blocks * ROWS};
}

/* In float32, but for sums that are too large for it on the way. */
static inline float product_of(const problem *of, int64_t row, int64_t id) {
    const float *query = of->queries + row * of->dim;
    const float score = product(query, &of->keys, id, of->dim);
    return isnan(score) ? (float)precise_product(query, &of->keys, id, of->dim) : score;
}

static int64_t rank_all(const problem *of, best *query, hit *hits) {
    return rank(query, of->queries + query->row * of->dim, &of->keys, of->dim, hits);
}

static void add(const problem *of, best *query, float score, int64_t id, hit *hits) {
    query->scores[query->size] = score, query->ids[query->size++] = (int32_t)id;
    if (query->size < most_candidates(query->k))
        return;
    thin_out(query);
    if (query->size < most_candidates(query->k))
        return;
    /* more nearly equal ones than there is room for */
    query->size = rank_all(of, query, hits);
    for (int64_t each = 0; each < query->size; each++)
        query->scores[each] = (float)hits[each].score, query->ids[each] = (int32_t)hits[each].id;
}

/* Make keys candidates if their products allow. At most AHEAD of them: all products are made before the first of them
   decides anything, so that none waits for a decision. */
static void look(const problem *of, best **queue, const visit *visits, int64_t num_visits, const workspace *in) {
    float scores[AHEAD];
    for (int64_t each = 0; each < num_visits; each++)
        scores[each] = product_of(of, in->rows[visits[each].slot], visits[each].id);
    for (int64_t each = 0; each < num_visits; each++) {
        const int64_t slot = visits[each].slot;
        if (!(scores[each] >= in->thresholds[slot]))
            continue;
        add(of, queue[slot], scores[each], visits[each].id, in->hits);
        if (queue[slot]->threshold > in->thresholds[slot])
            set_threshold(in, slot, queue[slot]->threshold);
    }
}

/* Look at keys of the panel that begins with the key `first`, for some slots. */
static void look_at_passing(const problem *of, best **queue, list keys, int64_t first, int64_t num_slots,
                            const workspace *in) {
    visit visits[AHEAD];
    int64_t num_visits = 0;
    for (int64_t each = 0; each < num_slots; each++) {
        const int64_t slot = in->to_look_at[each];
        const float *sketch = of->query_sketches + in->rows[slot] * of->width;
        for (uint64_t left = in->passing[slot]; left; left &= left - 1) {
            const int64_t id = id_of(keys, first + __builtin_ctzll(left));
            /* tighter than whole numbers */
            if (of->width < of->dim &&
                product(sketch, &of->key_sketches, id, of->width) < in->thresholds[slot])
                continue;
            fetch(row_of(&of->keys, id), of->dim * bytes_of(of->keys.kind));
            visits[num_visits++] = (visit){slot, id};
            if (num_visits == AHEAD) {
                look(of, queue, visits, num_visits, in);
                num_visits = 0;
            }
        }
    }
    look(of, queue, visits, num_visits, in);
}

/* Offer keys, and the panels of them, to the queries. */
static void scan(const problem *of, best **queue, int64_t num_queries, list keys, panels coded, const workspace *in) {
    const shape sketch = shape_of(of->width);
    const int64_t tiles = num_tiles(num_queries);
    put_queries(sketch, queue, num_queries, in);
    for (int64_t first = 0, panel = 0; first < keys.size; first += COLS, panel++) {
        const uint8_t *codes = coded.codes + panel * codes_of_panel(sketch);
        const int64_t cols = keys.size - first;
        const uint64_t present = cols < COLS ? ((uint64_t)1 << cols) - 1 : UINT64_MAX;
        set_limits(in->limits, num_queries, coded.bounds[panel], sketch);
        for (int64_t number = 0, slot = 0; number < tiles; number++, slot += ROWS)
            compare_tile(tile_of(sketch, number, in), codes, sketch, in->limits.limits + slot, present,
                         in->passing + slot);
        /* without a branch that nobody can foretell */
        int64_t num_slots = 0;
        for (int64_t slot = 0; slot < num_queries; slot++) {
            in->to_look_at[num_slots] = (int32_t)slot;
            num_slots += in->passing[slot] != 0;
        }
        look_at_passing(of, queue, keys, first, num_slots, in);
    }
}

#endif
