// world.h - the world of a generated novel: who there is, what happens in which scene, and what is
// asked about it. Knows no language: people, places and things are numbers; novel.c has the words.
#ifndef WORLD_H
#define WORLD_H
#include "tasks.h"

EXTERN_C_BEGIN

typedef enum { EV_NONE, EV_BUY, EV_MEET, EV_TRAVEL, EV_LETTER, EV_JOB, EV_KIN, EV_SEEN,
               N_EVENTS } EventKind;

// a acts; b is the seller, the person met, written to, or related; unused fields are 0
typedef struct {
    EventKind kind;
    int a, b, place, object, colour, price, means, relation;
} Event;

typedef enum {
    ASK_PRICE, ASK_COLOUR, ASK_SHOP, ASK_SELLER, ASK_SELLER_JOB, ASK_KIN_BOUGHT, ASK_LETTER,
    ASK_WRITER_JOB, ASK_MEET_COUNT, ASK_MEET_DATE, ASK_MEET_WHERE, ASK_SPEND, ASK_LAST_SEEN,
    ASK_DEAREST, ASK_BOUGHT_AT, ASK_BY_COLOUR, ASK_MEANS, ASK_JOURNEYS, ASK_CHEAP_COUNT, N_ASKS
} AskKind;

// what an answer is
typedef enum { IS_PRICE, IS_COLOUR, IS_PLACE, IS_PERSON, IS_JOB, IS_OBJECT, IS_COUNT, IS_DATE,
               IS_MEANS } AnswerKind;

// RELEVANT events decide the answer, the last of them (event 0) stands at the question's slot;
// the others are about the same person and only look like it
enum { RELEVANT = 4, BUNDLE = 6, WORLD_MIN_UNITS = 6, SCENES_A_CHAPTER = 12 };

typedef struct {
    AskKind kind;
    int slot;                       // of n_turns
    int n_events, n_relevant;       // events 0 .. n_relevant - 1 decide the answer
    Event event[BUNDLE];
    int at[BUNDLE];                 // scene of each event
    Event about;                    // the fields the question names
    AnswerKind is;
    int answer;                     // number of the person, place, ...; a price, a count, a scene
} Ask;

// event `part` of question `ask`, or with ask < 0 the background event number `other`
typedef struct { Event event; int ask, part, other; } Scene;

// how many of each the language has words for
typedef struct { int colours, jobs, means, relations, objects, places; } WorldSizes;

typedef struct {
    uint64_t seed, purpose;
    int number, n_turns, n_units;
    WorldSizes size;
    int planned_people, planned_objects;
    Ask *ask;                       // n_turns
    Scene *scene;                   // n_units
} World;

// n_units >= WORLD_MIN_UNITS n_turns. Planned and background events come from streams that do not
// know n_units: a longer novel has more scenes in between.
void world_make(World *w, uint64_t seed, int number, uint64_t purpose, int n_turns, int n_units,
                WorldSizes size);
void world_clear(World *w);
Rng world_rng(const World *w, int stream, uint64_t i);  // stream 0 .. 255, its i-th generator
enum { WORLD_STREAMS = 16 };                            // streams of the world itself
int world_job(const World *w, int person);          // everybody keeps one trade

EXTERN_C_END
#endif
