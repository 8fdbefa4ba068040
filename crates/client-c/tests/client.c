/* Uses the cache whose socket is the argument, in all ways that there are. */
#include "postkeep_scache.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "line %d: %s (%s)\n", __LINE__, #condition, postkeep_scache_error(cache));                 \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static int open_descriptors(void)
{
    DIR *directory = opendir("/proc/self/fd");
    int count = 0;

    while (readdir(directory) != NULL)
        count++;
    closedir(directory);
    return count;
}

static int is_closed(int far)
{
    char byte;

    return recv(far, &byte, 1, 0) == 0;
}

int main(int argc, char **argv)
{
    const char *label = "c\nendpoint\xff";
    struct postkeep_scache *cache = NULL;
    struct postkeep_session *session = (struct postkeep_session *)&argc;
    int before = open_descriptors();
    int ends[2], fd;
    size_t length = 99;
    char word[5] = "";

    if (argc != 2)
        return 2;
    CHECK(postkeep_scache_open(NULL, 1, 1000) == NULL);
    CHECK(postkeep_scache_open(argv[1], 1, 0) == NULL);
    cache = postkeep_scache_open(argv[1], 1, 5000);
    CHECK(cache != NULL);

    CHECK(postkeep_scache_find_endpoint(cache, label, strlen(label), &session) == POSTKEEP_NO);
    CHECK(session == NULL);

    /* Once through the cache, by destination. */
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    CHECK(postkeep_scache_save_destination(cache, 60, "c", 1, "by name", 7, label, strlen(label)) == POSTKEEP_OK);
    CHECK(postkeep_scache_save_endpoint(cache, 60, label, strlen(label), "property", 8, ends[0]) == POSTKEEP_OK);
    CHECK(postkeep_scache_find_destination(cache, "c", 1, &session) == POSTKEEP_OK);
    CHECK(strcmp(postkeep_session_endpoint_property(session, &length), "property") == 0 && length == 8);
    CHECK(strcmp(postkeep_session_destination_property(session, NULL), "by name") == 0);
    fd = postkeep_session_take(session);
    CHECK(fd >= 0 && postkeep_session_take(session) == -1);
    postkeep_session_free(session);
    CHECK(write(fd, "same", 4) == 4 && read(ends[1], word, 4) == 4 && strcmp(word, "same") == 0);

    /* One that is found and not taken is closed. */
    CHECK(postkeep_scache_save_endpoint(cache, 60, label, strlen(label), "", 0, fd) == POSTKEEP_OK);
    CHECK(postkeep_scache_find_endpoint(cache, label, strlen(label), &session) == POSTKEEP_OK);
    CHECK(*postkeep_session_destination_property(session, &length) == '\0' && length == 0);
    postkeep_session_free(session);
    CHECK(is_closed(ends[1]));
    close(ends[1]);

    /* What is refused is closed. */
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(postkeep_scache_save_endpoint(cache, 60, label, strlen(label), "", 0, fd) == POSTKEEP_NO);

    /* So is what cannot be sent; the cache is still good. */
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    CHECK(postkeep_scache_save_endpoint(cache, 60, "a\0b", 3, "", 0, ends[0]) == POSTKEEP_ERROR);
    CHECK(strcmp(postkeep_scache_error(cache), "bad argument") == 0);
    CHECK(is_closed(ends[1]));
    close(ends[1]);
    CHECK(postkeep_scache_save_endpoint(cache, 0, "a", 1, "", 0, dup(0)) == POSTKEEP_ERROR);
    CHECK(postkeep_scache_save_endpoint(cache, 1, "a", 1, "", 0, -1) == POSTKEEP_ERROR);
    CHECK(postkeep_scache_find_endpoint(cache, NULL, 0, &session) == POSTKEEP_ERROR && session == NULL);
    CHECK(postkeep_scache_find_endpoint(cache, "a", 1, NULL) == POSTKEEP_ERROR);
    CHECK(postkeep_scache_find_endpoint(cache, label, strlen(label), &session) == POSTKEEP_NO);
    postkeep_scache_close(cache);

    /* Nobody there; and nothing at all. */
    cache = postkeep_scache_open("/nonexistent/socket", 1, 100);
    CHECK(postkeep_scache_find_endpoint(cache, "a", 1, &session) == POSTKEEP_ERROR);
    CHECK(strstr(postkeep_scache_error(cache), "/nonexistent/socket") != NULL);
    CHECK(postkeep_scache_find_endpoint(cache, "a", 1, &session) == POSTKEEP_ERROR);
    CHECK(strstr(postkeep_scache_error(cache), "/nonexistent/socket") != NULL);
    postkeep_scache_close(cache);
    cache = NULL;
    CHECK(postkeep_scache_find_endpoint(NULL, "a", 1, &session) == POSTKEEP_ERROR);
    CHECK(postkeep_scache_save_endpoint(NULL, 1, "a", 1, "", 0, dup(0)) == POSTKEEP_ERROR);
    CHECK(postkeep_session_take(NULL) == -1);
    CHECK(*postkeep_session_endpoint_property(NULL, &length) == '\0' && length == 0);
    postkeep_session_free(NULL);
    postkeep_scache_close(NULL);

    CHECK(open_descriptors() == before);
    puts("ok");
    return 0;
}
