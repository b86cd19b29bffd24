/*
 * gitdevops.h - chunks as git-devops cuts and names them, for C and for
 * everything that can call C.
 *
 * Functions that return int return 0, or a negative GDO_E... number; then
 * gdo_last_error() tells in words what happened. A NULL where there must be
 * something is such an error (GDO_EUSAGE), and so is a failure inside the
 * library (GDO_EBUG): no call ends the program. What an "out" parameter points
 * to is unchanged after an error, except where said.
 *
 * All functions may be called from all threads, but one chunker from one
 * thread at a time. Nothing is read from the environment, nothing is printed
 * but the message of a panic (after which GDO_EBUG is returned).
 */
#ifndef GITDEVOPS_H
#define GITDEVOPS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What went wrong. A number never gets another meaning; there may be more. */
enum {
    GDO_EUSAGE = -1,        /* the call itself is wrong: NULL, a text that is no chunker */
    GDO_ENOTFOUND = -2,     /* what was asked for does not exist */
    GDO_ECORRUPT = -3,      /* stored bytes are not what was stored */
    GDO_EIO = -4,           /* the operating system refused or failed */
    GDO_ENOSPACE = -5,      /* a disk, a quota or an inode table is full */
    GDO_ELOCKED = -6,       /* another run holds the lock */
    GDO_EREFUSED = -7,      /* input that is not acted on: hostile, or protected */
    GDO_ECONFLICT = -8,     /* two changes of the same thing */
    GDO_EPARTIAL = -9,      /* some of the work could not be done; the rest was */
    GDO_EUNSUPPORTED = -10, /* newer than this library */
    GDO_EBUG = -11,         /* a mistake in the library; free what the call used */
    GDO_EHALTED = -12,      /* what is applied in order stopped, and a person decides */
    GDO_EREBOOT = -13       /* the machine must start anew first */
};

/* Length of a chunk id, in bytes. */
#define GDO_CHUNK_ID_LEN 32

/* Returns the version of the library, as "0.1.0". It is never freed. */
const char *gdo_version(void);

/*
 * Returns what went wrong in the last failed call of this thread: one line of
 * UTF-8, "" if none failed yet. It is valid until the next failed call of this
 * thread, or the end of the thread; it is never freed.
 */
const char *gdo_last_error(void);

/*
 * Writes the id of the chunk `data` to `out`: its BLAKE3 hash. `data` may be
 * NULL if `len` is 0.
 */
int gdo_chunk_id(const uint8_t *data, size_t len, uint8_t out[GDO_CHUNK_ID_LEN]);

/* Cuts one stream of bytes into chunks. */
typedef struct gdo_chunker gdo_chunker;

/*
 * Makes a chunker at the start of a stream. `spec` is its text, as in a chunk
 * index: "gear", "rabin", "fixed", or with parameters, as in
 * "gear:min=16384,avg=65536,max=262144".
 *
 * After an error `*out` is NULL. Otherwise the caller frees it by
 * gdo_chunker_free().
 */
int gdo_chunker_new(const char *spec, gdo_chunker **out);

/*
 * Writes the length of the next chunk to `*out_len`; the chunk begins at
 * `data`, and the one after it is to be handed in next. It is 0 only if `len`
 * is 0.
 *
 * `len` is at least gdo_chunker_max_len(), or all that is left of the stream:
 * with less, the cut is not where it should be. `data` may be NULL if `len`
 * is 0.
 */
int gdo_chunker_cut(gdo_chunker *chunker, const uint8_t *data, size_t len, size_t *out_len);

/* Returns the length that no chunk exceeds; 0 if `chunker` is NULL. */
size_t gdo_chunker_max_len(const gdo_chunker *chunker);

/* Takes the chunker to the start of another stream. */
int gdo_chunker_reset(gdo_chunker *chunker);

/* Frees a chunker. NULL is left alone. */
void gdo_chunker_free(gdo_chunker *chunker);

#ifdef __cplusplus
}
#endif

#endif
