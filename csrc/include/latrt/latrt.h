/* la-trt in a program of your own: a C API over the CPU engine. No Python is needed.

   Threads. A model is immutable once open and may be used by any number of threads at once. A
   session belongs to one thread at a time; different sessions, of one model or of several, may
   run at the same time. The matrix threads of all sessions come from one pool for each number of
   threads, so that more sessions do not mean more threads. The error texts are those of the
   calling thread.

   Memory. Strings go in as UTF-8 and are copied. Every pointer that comes out belongs to the
   object it came from and stays valid until the next call on that object; an event's pointers
   until the callback returns or the next step.

   Errors. Calls return a status; latrt_error_name() and latrt_error_message() say what the last
   failed call of this thread found wrong (nothing, "", in destructors that run after the main
   thread's end). A failed call leaves its object as it was, unless said otherwise. No exception
   leaves the library. */
#ifndef LATRT_LATRT_H
#define LATRT_LATRT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#error "la-trt's library is for POSIX systems"
#endif
#define LATRT_API __attribute__((visibility("default")))

#define LATRT_VERSION_MAJOR 0
#define LATRT_VERSION_MINOR 1

#ifdef __cplusplus
extern "C" {
#endif

/* As the exit codes of the command line. */
typedef enum latrt_status {
    LATRT_OK = 0,
    LATRT_USAGE = 2,    /* an option, an argument, or a call at the wrong time */
    LATRT_INPUT = 3,    /* an image or a prompt is refused */
    LATRT_BUNDLE = 4,   /* the bundle is refused */
    LATRT_MACHINE = 5,  /* memory, files */
    LATRT_INTERNAL = 70 /* a bug in this library */
} latrt_status;

typedef struct latrt_model latrt_model;
typedef struct latrt_session latrt_session;

/* The E_NAME and the message of this thread's last failed call; "" before any failed. */
LATRT_API const char* latrt_error_name(void);
LATRT_API const char* latrt_error_message(void);

/* "0.1.0" */
LATRT_API const char* latrt_version(void);

/* ---- Models ---- */

typedef struct latrt_model_options {
    const char* isa;      /* "auto", "plain", "avx2", "avx512", "avx512_bf16", "amx" */
    int32_t threads;      /* 0: all that the process may use */
    int64_t max_len;      /* KV positions of a session; 0: the smaller of 8192 and the bundle's */
    const char* kv_dtype; /* "float32", "bfloat16", "float16", "int8"; "auto": float32 with float32
                             weights, else bfloat16 */
    int32_t skip_verify;  /* 1: do not hash the files; names, kinds and sizes are still checked */
} latrt_model_options;

LATRT_API void latrt_model_options_init(latrt_model_options* options);

/* Opens a bundle made by `la-trt build`. `options` may be null. The weights are mapped: replace
   a bundle as a whole while it is open, never cut its files. */
LATRT_API latrt_status latrt_open(const char* bundle, const latrt_model_options* options,
                                  latrt_model** model);

/* Sessions keep what they need of it; null is allowed. */
LATRT_API void latrt_close(latrt_model* model);

typedef struct latrt_model_info {
    const char* isa;
    const char* dtype;    /* of the decoder's weights */
    const char* kv_dtype; /* of keys and values */
    int64_t max_len, vocab_size;
    int64_t patch_size, merge_size; /* pixels; patches along one side of a visual token */
    int64_t image_token_id;
    int64_t reflection_open_id, reflection_close_id; /* -1: the checkpoint has no such token */
} latrt_model_info;

LATRT_API latrt_status latrt_model_get_info(const latrt_model* model, latrt_model_info* info);

/* Token ids of plain text: a control token spelt in it is text. `*count` comes in as the room in
   `ids` and goes out as what there is; only what fits is written. */
LATRT_API latrt_status latrt_tokenize(const latrt_model* model, const char* text, size_t size,
                                      int64_t* ids, size_t* count);

/* The bytes of a token, maybe a part of a character; `*size` 0 for an unknown id. They stay valid
   as long as the model. */
LATRT_API latrt_status latrt_token_bytes(const latrt_model* model, int64_t id, const char** bytes,
                                         size_t* size);

/* ---- Sessions ---- */

typedef struct latrt_session_options {
    const char* policy;        /* copy, route, text, vision, never, random */
    const char* inject;        /* null: the policy's; "embed" or "kv" */
    const char* trigger;       /* null: the policy's; "reflection", "every", "entropy", "none" */
    double percent;            /* of the visual tokens, for route and random; default 50 */
    int64_t max_reflections;   /* default 8 */
    int64_t every_tokens;      /* of trigger every; default 64 */
    double entropy_nats;       /* of trigger entropy; default 2 */
    int64_t min_gap;           /* of trigger entropy; default 16 */
    double temperature;        /* 0: greedy */
    double top_p;              /* 1: off */
    double repetition_penalty; /* 1: off */
    int64_t top_k;             /* 0: off */
    int64_t seed;
    int64_t sample;          /* tells answers to one prompt apart under one seed */
    int64_t max_tokens;      /* default 512 */
    const char* const* stop; /* at most 4 strings that end the answer and are no part of it */
    size_t num_stop;
    const int64_t* stop_token_ids;
    size_t num_stop_token_ids;
    const int64_t* forced; /* ids that the answer begins with */
    size_t num_forced;
    int32_t ignore_eos;
    int32_t masses;         /* 1: keep the visual mass of every step, whatever the policy */
    int64_t reserve_tokens; /* KV positions kept for latrt_reinject */
    int64_t speculate;      /* 0 to 16 tokens guessed ahead in a pass, out of this answer and the
                               session's earlier ones; they change no answer. Default 0 */
} latrt_session_options;

LATRT_API void latrt_session_options_init(latrt_session_options* options);

/* `options` may be null. KV memory is taken at the first step. */
LATRT_API latrt_status latrt_session_create(const latrt_model* model,
                                            const latrt_session_options* options,
                                            latrt_session** session);
LATRT_API void latrt_session_destroy(latrt_session* session);

/* Forgets prompt, answer and KV cache, for another answer. `options` null: the defaults. What was
   said is remembered for guesses as long as `speculate` is not 0. */
LATRT_API latrt_status latrt_session_reset(latrt_session* session,
                                           const latrt_session_options* options);

/* Rows of 8-bit RGB, `stride` bytes apart (0: 3 * width). Upright; no profile is applied. */
typedef struct latrt_image {
    const uint8_t* rgb;
    int32_t width, height;
    int64_t stride;
} latrt_image;

/* A turn: role (system, user, assistant, tool), text, and how many of the images it holds;
   images stand before the text. */
typedef struct latrt_message {
    const char* role;
    const char* text;
    int32_t num_images;
} latrt_message;

/* The prompt, by the bundle's chat template, ready for an answer. Replaces what was appended.
   Texts never yield a control token. */
LATRT_API latrt_status latrt_chat(latrt_session* session, const latrt_message* messages,
                                  size_t num_messages, const latrt_image* images,
                                  size_t num_images);

/* The same for one question about images; `system` may be null. */
LATRT_API latrt_status latrt_ask(latrt_session* session, const latrt_image* images,
                                 size_t num_images, const char* question, const char* system);

/* Or piece by piece, before the first step: token ids, plain text, a control token by its text
   ("<|im_start|>"), an image (its patches only: "<|vision_start|>" and the like are yours). */
LATRT_API latrt_status latrt_append_tokens(latrt_session* session, const int64_t* ids,
                                           size_t count);
LATRT_API latrt_status latrt_append_text(latrt_session* session, const char* text, size_t size);
LATRT_API latrt_status latrt_append_control(latrt_session* session, const char* token);
LATRT_API latrt_status latrt_append_image(latrt_session* session, const latrt_image* image);

/* ---- Generating ---- */

typedef enum latrt_event_kind {
    LATRT_EVENT_TOKEN = 1,
    LATRT_EVENT_REFLECTION = 2,
    LATRT_EVENT_REINJECT = 3,
    LATRT_EVENT_DONE = 4
} latrt_event_kind;

typedef struct latrt_event {
    latrt_event_kind kind;
    int64_t step; /* generated tokens before this one */

    /* token */
    int64_t token_id;
    const char* text; /* what became printable, maybe ""; of done: the rest of a cancelled answer */
    size_t text_size;
    double logprob; /* at temperature 1, before penalties */
    int32_t forced;

    /* reflection */
    int64_t index;
    int32_t opened;

    /* reinject: before token `step`, or why not */
    const char* inject;      /* "embed", "kv" */
    const char* select;      /* "all", "route", "random", "given" */
    const int64_t* selected; /* visual tokens of the prompt, ascending */
    size_t num_selected;
    double ms;
    const char* skipped; /* "" or "no_room", "max_reflections", "no_visual_tokens" */

    /* done */
    const char* finish_reason; /* "stop", "length", "numerical_error", "cancelled" */
} latrt_event;

/* Runs until the next token (the first time the vision tower and the prompt too; nothing where a
   guess came true). `*events` and `*count` are what happened; after the event done there are none.
   Refused, E_CONTEXT_LENGTH, where prompt and max_tokens exceed the model's max_len. Without memory
   for the images the session stays as it was; without memory for a forward pass the answer ends,
   "cancelled". */
LATRT_API latrt_status latrt_step(latrt_session* session, const latrt_event** events,
                                  size_t* count);

/* Called for each event; anything but 0 cancels the answer, whose event done still comes. It must
   not call functions of its session other than the reading ones. */
typedef int32_t (*latrt_callback)(const latrt_event* event, void* user);

/* Steps until the answer has ended. */
LATRT_API latrt_status latrt_run(latrt_session* session, latrt_callback callback, void* user);

/* Ends the answer here. */
LATRT_API latrt_status latrt_cancel(latrt_session* session);

/* Puts visual tokens in before the next token's forward pass, whatever the policy says: `count`
   ascending indices, or all of them (`selected` null). `inject`: "embed" or "kv". The next step
   reports it; it is skipped where it does not fit (see reserve_tokens). */
LATRT_API latrt_status latrt_reinject(latrt_session* session, const int64_t* selected, size_t count,
                                      const char* inject);

/* ---- The answer, so far or finished ---- */

typedef struct latrt_result {
    const char* text;
    size_t text_size;
    const char* conclusion; /* trimmed text of the last <CONCLUSION>, or "" */
    size_t conclusion_size;
    const char* finish_reason; /* "" while the answer goes on */
    const int64_t* tokens;
    size_t num_tokens;
    int64_t prompt_tokens, visual_tokens, reinjected_tokens; /* prompt_tokens has visual_tokens */
    int64_t num_reflections, num_reinjections;
    double vision_ms, prefill_ms, decode_ms, reinject_ms; /* engine time by stage */
    size_t num_masses;                 /* generated tokens that were forwarded with a mass */
    int64_t num_drafted, num_accepted; /* tokens guessed, and those that came true */
} latrt_result;

LATRT_API latrt_status latrt_get_result(latrt_session* session, latrt_result* result);

/* The attention probability on each visual token, (visual_tokens), mean over layers and heads, of
   the `index`-th forwarded token; a copy's share counts for its source. */
LATRT_API latrt_status latrt_get_mass(latrt_session* session, size_t index, const float** mass,
                                      size_t* count);

/* The prompt's token ids, one image-pad for each visual token. */
LATRT_API latrt_status latrt_get_prompt(latrt_session* session, const int64_t** ids, size_t* count);

#ifdef __cplusplus
}
#endif

#endif
