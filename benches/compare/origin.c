/* The origin that the measured proxies stand in front of: HTTP/1.1 with keep-alive, cheap enough never to be what is measured.
 *
 *   origin PORT...      listens on these ports of 127.0.0.1, from one thread
 *
 *   any method /N       answers 200 with N bytes, after the request's body (content-length) has been read
 *   GET /count          answers with how many requests it has read so far, this one not included
 *   GET /head           answers with the request's head as it came
 *
 * No pipelining, no chunked requests: the loads send none. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEAD_MAX = 16384, SIZES_MAX = 16, EVENTS = 256, ANSWER_MAX = 64 << 20 };

struct connection {
    int fd;
    int listens;
    size_t head_length;       /* bytes in `head` */
    size_t body_left;         /* of the request, to be read and forgotten */
    const char *answer;       /* what is to be sent once the body is read */
    size_t answer_left;
    int waits_to_write;
    char head[HEAD_MAX];
    char own[HEAD_MAX + 256]; /* an answer made for this request */
};

struct answer {
    size_t body, length;
    char *bytes;
};

static int loop;
static unsigned long long requests;
static struct answer answers[SIZES_MAX];
static char sink[1 << 18];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static size_t write_head(char *to, size_t body) {
    return (size_t)sprintf(to,
                           "HTTP/1.1 200 OK\r\nServer: origin\r\nDate: Fri, 20 Nov 2026 12:00:00 GMT\r\n"
                           "Content-Type: text/plain\r\nContent-Length: %zu\r\n\r\n",
                           body);
}

/* Made once for each size. */
static const struct answer *answer_of(size_t body) {
    struct answer *it = answers;
    while (it < answers + SIZES_MAX - 1 && it->bytes && it->body != body) it++;
    if (it->bytes && it->body == body) return it;
    if (it->bytes) return NULL;
    it->bytes = malloc(body + 256);
    if (!it->bytes) fail("malloc");
    it->body = body;
    it->length = write_head(it->bytes, body);
    memset(it->bytes + it->length, 'x', body);
    it->length += body;
    return it;
}

/* Reads what matters of a whole head; 0 if it cannot be answered. */
static int understand(struct connection *c, size_t length) {
    char *path = memchr(c->head, ' ', length);
    if (!path) return 0;
    path++;
    c->body_left = 0;
    for (char *line = c->head; (line = memchr(line, '\n', length - (size_t)(line - c->head))) != NULL;) {
        line++;
        if (strncasecmp(line, "content-length:", 15) == 0) c->body_left = strtoull(line + 15, NULL, 10);
        if (strncasecmp(line, "transfer-encoding:", 18) == 0) return 0;
    }
    if (strncmp(path, "/head ", 6) == 0) {
        size_t head = write_head(c->own, length);
        memcpy(c->own + head, c->head, length);
        c->answer = c->own;
        c->answer_left = head + length;
    } else if (strncmp(path, "/count ", 7) == 0) {
        char text[32];
        size_t digits = (size_t)sprintf(text, "%llu", requests);
        size_t head = write_head(c->own, digits);
        memcpy(c->own + head, text, digits);
        c->answer = c->own;
        c->answer_left = head + digits;
    } else {
        size_t body = strtoull(path + 1, NULL, 10);
        const struct answer *answer = body <= ANSWER_MAX ? answer_of(body) : NULL;
        if (!answer) return 0;
        c->answer = answer->bytes;
        c->answer_left = answer->length;
    }
    requests++;
    return 1;
}

static void wait_for(struct connection *c, int to_write) {
    if (c->waits_to_write == to_write) return;
    c->waits_to_write = to_write;
    struct epoll_event event = {.events = to_write ? EPOLLOUT : EPOLLIN, .data.ptr = c};
    if (epoll_ctl(loop, EPOLL_CTL_MOD, c->fd, &event)) fail("epoll_ctl");
}

/* Sends as much as goes; 0 if the connection is broken. */
static int send_answer(struct connection *c) {
    while (c->answer_left > 0) {
        ssize_t sent = send(c->fd, c->answer, c->answer_left, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            wait_for(c, 1);
            return 1;
        }
        if (sent < 0) return 0;
        c->answer += sent;
        c->answer_left -= (size_t)sent;
    }
    wait_for(c, 0);
    return 1;
}

/* Reads once; 0 if the connection is over. */
static int receive(struct connection *c) {
    if (c->body_left > 0) {
        size_t most = c->body_left < sizeof sink ? c->body_left : sizeof sink;
        ssize_t got = recv(c->fd, sink, most, 0);
        if (got < 0 && errno == EAGAIN) return 1;
        if (got <= 0) return 0;
        c->body_left -= (size_t)got;
        return c->body_left > 0 || send_answer(c);
    }
    ssize_t got = recv(c->fd, c->head + c->head_length, sizeof c->head - 1 - c->head_length, 0);
    if (got < 0 && errno == EAGAIN) return 1;
    if (got <= 0) return 0;
    size_t looked = c->head_length > 3 ? c->head_length - 3 : 0;
    c->head_length += (size_t)got;
    char *end = memmem(c->head + looked, c->head_length - looked, "\r\n\r\n", 4);
    if (!end) return c->head_length < sizeof c->head - 1;
    size_t length = (size_t)(end - c->head) + 4, beyond = c->head_length - length;
    c->head[c->head_length] = 0;
    if (!understand(c, length) || beyond > c->body_left) return 0;
    c->body_left -= beyond;
    c->head_length = 0;
    return c->body_left > 0 || send_answer(c);
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct connection *c = malloc(sizeof *c);
        if (!c) fail("malloc");
        c->fd = fd;
        c->listens = c->waits_to_write = 0;
        c->head_length = c->body_left = c->answer_left = 0;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
    }
}

static void listen_on(int port) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((unsigned short)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) fail("listen");
    struct connection *c = calloc(1, sizeof *c);
    if (!c) fail("calloc");
    c->fd = fd;
    c->listens = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
}

int main(int count, char **words) {
    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    if ((loop = epoll_create1(0)) < 0) fail("epoll_create1");
    if (count < 2) {
        fprintf(stderr, "usage: origin PORT...\n");
        return 2;
    }
    for (int i = 1; i < count; i++) listen_on(atoi(words[i]));
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(loop, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->listens) {
                accept_all(c->fd);
            } else if (!(c->waits_to_write ? send_answer(c) : receive(c))) {
                close(c->fd);
                free(c);
            }
        }
    }
}
