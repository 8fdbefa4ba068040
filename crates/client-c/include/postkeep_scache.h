/*
 * A client of scache(8), the connection cache of Postfix and of postkeep.
 *
 * Programs that do not know each other share connections to other servers through the cache: one saves a connection
 * that it does not need for a moment, another finds it and goes on with it.
 *
 *     struct postkeep_scache *cache = postkeep_scache_open("/var/spool/postfix/private/scache", 1, 5000);
 *     struct postkeep_session *session = NULL;
 *     int fd;
 *
 *     if (postkeep_scache_find_endpoint(cache, label, strlen(label), &session) == POSTKEEP_OK) {
 *         fd = postkeep_session_take(session);
 *         postkeep_session_free(session);
 *     } else {
 *         fd = connect_and_greet(...);
 *     }
 *     ...
 *     postkeep_scache_save_endpoint(cache, 2, label, strlen(label), "", 0, fd);
 *     postkeep_scache_close(cache);
 *
 * Labels and properties are bytes without NUL that mean something to clients only. Whatever clients that share
 * connections have to agree on belongs into the label: with whom, as whom, with which TLS. A session that is found is
 * not in the cache any more, so it has one owner at a time.
 *
 * An object may be used by one thread at a time. NULL is an error, or nothing to be done, in all functions.
 */
#ifndef POSTKEEP_SCACHE_H
#define POSTKEEP_SCACHE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A connection to the cache. */
struct postkeep_scache;

/* A connection to some server that was found in the cache. */
struct postkeep_session;

/* Saved, or found. */
#define POSTKEEP_OK 0
/* Refused by the cache, or not found. The connection to the cache is still good. */
#define POSTKEEP_NO 1
/* The cache cannot be reached, broke off or said something strange; postkeep_scache_error() says more. */
#define POSTKEEP_ERROR (-1)

/*
 * Makes a client. It connects when something is asked of it, and connects again, once, when the cache was restarted
 * in between.
 *
 * - path: of the socket of the cache
 * - announced: not 0: the server speaks first (Postfix 3.6 and later, postkeep by default)
 * - timeout: for connecting, and for each wait after that, in milliseconds; above 0
 *
 * NULL when an argument is none of these. The object goes to postkeep_scache_close().
 */
struct postkeep_scache *postkeep_scache_open(const char *path, int announced, int timeout);

/* Disconnects. What is in the cache stays. */
void postkeep_scache_close(struct postkeep_scache *cache);

/*
 * Saves a connection under the label of its endpoint.
 *
 * - ttl: seconds, above 0; the cache takes no more than its connection_cache_ttl_limit
 * - fd: the connection; the library's from now on, and closed whatever happens, unless it is negative
 */
int postkeep_scache_save_endpoint(struct postkeep_scache *cache, int ttl, const void *label, size_t label_length,
                                  const void *property, size_t property_length, int fd);

/* Binds the label of a destination to that of an endpoint; ttl as above. */
int postkeep_scache_save_destination(struct postkeep_scache *cache, int ttl, const void *label, size_t label_length,
                                     const void *property, size_t property_length, const void *endpoint,
                                     size_t endpoint_length);

/* Takes a session of an endpoint out of the cache. *session is NULL unless the answer is POSTKEEP_OK. */
int postkeep_scache_find_endpoint(struct postkeep_scache *cache, const void *label, size_t label_length,
                                  struct postkeep_session **session);

/* Takes a session of any endpoint of a destination out of the cache; as above. */
int postkeep_scache_find_destination(struct postkeep_scache *cache, const void *label, size_t label_length,
                                     struct postkeep_session **session);

/* Why the last call with this object was POSTKEEP_ERROR; valid until the next one. Never NULL. */
const char *postkeep_scache_error(const struct postkeep_scache *cache);

/* The connection: the caller's from now on, to be closed with close(2). -1 the second time. */
int postkeep_session_take(struct postkeep_session *session);

/* What was saved with the session; valid until it is freed. Bytes without NUL, with a NUL after them. */
const char *postkeep_session_endpoint_property(const struct postkeep_session *session, size_t *length);

/* What was saved with the destination; empty when the session was found by its endpoint. */
const char *postkeep_session_destination_property(const struct postkeep_session *session, size_t *length);

/* Closes the connection, unless it was taken. */
void postkeep_session_free(struct postkeep_session *session);

#ifdef __cplusplus
}
#endif

#endif
