/*
 * Calls every function of the header: `test` alone checks errors, `test SPEC
 * KIND SEED LEN` prints the lengths of the chunks of a golden vector's data,
 * comma-separated.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gitdevops.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__, #condition, gdo_last_error()); \
            exit(1); \
        } \
    } while (0)

static uint64_t splitmix64(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static void fill(uint8_t *data, size_t len, const char *kind, uint64_t seed)
{
    uint64_t output = 0;
    for (size_t i = 0; i < len; i++) {
        if (strcmp(kind, "splitmix64") == 0) {
            output = i % 8 == 0 ? splitmix64(&seed) : output >> 8;
            data[i] = (uint8_t)output;
        } else if (strcmp(kind, "text") == 0) {
            data[i] = i % 64 == 63 ? '\n' : (uint8_t)('a' + splitmix64(&seed) % 26);
        } else {
            data[i] = strcmp(kind, "ones") == 0 ? 0xFF : 0;
        }
    }
}

static void print_lengths(const char *spec, const char *kind, uint64_t seed, size_t len)
{
    gdo_chunker *chunker;
    uint8_t *data = malloc(len + 1);
    size_t length;
    CHECK(data != NULL);
    fill(data, len, kind, seed);
    CHECK(gdo_chunker_new(spec, &chunker) == 0);
    for (int round = 0; round < 2; round++) {
        CHECK(gdo_chunker_reset(chunker) == 0);
        for (size_t at = 0; at < len; at += length) {
            CHECK(gdo_chunker_cut(chunker, data + at, len - at, &length) == 0);
            CHECK(0 < length && length <= gdo_chunker_max_len(chunker));
            if (round == 1)
                printf(at == 0 ? "%zu" : ",%zu", length);
        }
    }
    printf("\n");
    gdo_chunker_free(chunker);
    free(data);
}

static void check_chunk_id(void)
{
    static const uint8_t of_nothing[] = {0xaf, 0x13, 0x49, 0xb9};
    uint8_t id[GDO_CHUNK_ID_LEN];
    CHECK(gdo_chunk_id(NULL, 0, id) == 0);
    CHECK(memcmp(id, of_nothing, sizeof of_nothing) == 0);
    CHECK(gdo_chunk_id((const uint8_t *)"x", 1, id) == 0);
    CHECK(memcmp(id, of_nothing, sizeof of_nothing) != 0);
    CHECK(gdo_chunk_id(NULL, 1, id) == GDO_EUSAGE);
    CHECK(strcmp(gdo_last_error(), "'data' is NULL; it must point to something") == 0);
    CHECK(gdo_chunk_id((const uint8_t *)"x", SIZE_MAX, id) == GDO_EUSAGE);
    CHECK(gdo_chunk_id(NULL, 0, NULL) == GDO_EUSAGE);
    CHECK(strcmp(gdo_last_error(), "'out' is NULL; it must point to something") == 0);
}

static void check_chunker_errors(void)
{
    gdo_chunker *chunker = (gdo_chunker *)&chunker;
    size_t length = 7;
    CHECK(gdo_chunker_new("gear", NULL) == GDO_EUSAGE);
    CHECK(gdo_chunker_new(NULL, &chunker) == GDO_EUSAGE && chunker == NULL);
    CHECK(gdo_chunker_new("no\xff such", &chunker) == GDO_EUSAGE && chunker == NULL);
    CHECK(strstr(gdo_last_error(), "is not one of gear, rabin, fixed") != NULL);
    CHECK(gdo_chunker_cut(NULL, (const uint8_t *)"x", 1, &length) == GDO_EUSAGE && length == 7);
    CHECK(gdo_chunker_max_len(NULL) == 0);
    CHECK(gdo_chunker_reset(NULL) == GDO_EUSAGE);
    gdo_chunker_free(NULL);

    CHECK(gdo_chunker_new("fixed:size=64", &chunker) == 0 && chunker != NULL);
    CHECK(gdo_chunker_max_len(chunker) == 64);
    CHECK(gdo_chunker_cut(chunker, NULL, 1, &length) == GDO_EUSAGE && length == 7);
    CHECK(gdo_chunker_cut(chunker, (const uint8_t *)"x", 1, NULL) == GDO_EUSAGE);
    CHECK(strcmp(gdo_last_error(), "'out_len' is NULL; it must point to something") == 0);
    CHECK(gdo_chunker_cut(chunker, NULL, 0, &length) == 0 && length == 0);
    gdo_chunker_free(chunker);
}

int main(int argc, char **argv)
{
    if (argc == 5) {
        print_lengths(argv[1], argv[2], strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10));
        return 0;
    }
    CHECK(strcmp(gdo_last_error(), "") == 0);
    CHECK(gdo_version()[0] >= '0' && gdo_version()[0] <= '9');
    check_chunk_id();
    check_chunker_errors();
    printf("ok\n");
    return 0;
}
