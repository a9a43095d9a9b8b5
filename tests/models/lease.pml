/* Leases of an exclusive replica, with a change of its group and with crashes: a model for spin.
 *
 * What agent/domain/site/{voter,holder,group}.py do, for one replica, four nodes and two proposers.
 * Group M has the voters 0, 1, 2, and group N has 0, 1, 3: there are majorities without a common
 * voter. Proposer 0 is node 0. Proposer 1 is node RIVAL: 3, which only N has, or 1, which both have.
 * Each asks in M or in N whenever it likes, as plans, old and new, come when they come.
 *
 * What is said arrives at any time, in any order, twice, or never. What could only make a voter
 * refuse more is left out, since nothing is lost with it that could do harm: a ballot is not heard of
 * any more when its proposer has given it up; an opener knows of no more seals than it must; a lease
 * that nobody counts is over at once, and so a restart that counts it anew is no step of its own.
 *
 * Time is what the bound on drift leaves of it: a lease ends at a voter only when its holder does not
 * count that voter any more. Both are one step here (`end_m`, `end_n`), and every order of all other
 * steps is tried, so that each run of clocks within the bound is among them. What voters of N wait
 * for, by the word of whoever opened it, ends likewise. A holder may stop sooner at any time.
 *
 * It is asserted of what runs, not of what agents believe: the replica of an agent that crashed runs
 * on until its lease ends, when the switch ends it.
 *
 * ONE_GROUP leaves N out. TRIES: with how many ballots proposer 0 asks; with ONE_GROUP both do, and
 * else, and with BOUND, proposer 1 asks with one. test_lease_model.py checks all of it, and that each of these variants
 * fails (with TWO_HOLDERS: without regard to epochs):
 *   SKIP_SEAL  N is opened though M is not sealed
 *   NO_WAIT    N is opened for all at once, whatever still runs in M
 *   FORGET     a voter that restarts knows of no lease
 *   GIVE_BACK  a bid that came to nothing is given back like a lease
 *
 * BOUND adds what a restart of node 0 that was planned brings: a lease is renewed for longer before it, and the
 * next tenure of that node says, once its switch is armed with its own end, that voters need not keep
 * to anything longer. That is heard late and twice, too, also after its agent crashed. Its variants
 * that must fail:
 *   UNARMED    it is said though the switch may end later what runs
 *   LATE       a voter heeds it again when that ballot was granted for longer meanwhile
 *
 * REACH is a ballot that is asserted never to run in N, so that a check that fails shows that it can:
 * 1 is a holder's that moved there, 6 a rival's.
 */

#ifndef RIVAL
#define RIVAL 3
#endif
#ifndef TRIES
#define TRIES 1
#endif
#if defined(ONE_GROUP) && !defined(BOUND)
#define TRIES_OF(p) TRIES
#else
#define TRIES_OF(p) ((p) == 0 -> TRIES : 1)
#endif

#define NONE 0
#define M 1
#define N 2
#define BIT(v) (1 << (v))
#define IN_N(v) ((v) != 2)
#define MOST(set) ((((set) & 1) + (((set) >> 1) & 1) + (((set) >> 2) & 1) + (((set) >> 3) & 1)) >= 2)

/* 1 to 4 are first asked with in M, 5 to 8 in N. Each node has its own. */
#define BALLOT(p, group, try) (1 + ((group) == N -> 4 : 0) + 2 * (try) + (p))
#define OWNER(b) (((b) - 1) % 2)
#define FREE_FOR(lease, b) ((lease) == 0 || OWNER(lease) == OWNER(b))
#define EACH_OF_M(DO) DO(1) DO(2) DO(3) DO(4)
#define EACH_BALLOT(DO) EACH_OF_M(DO) DO(5) DO(6) DO(7) DO(8)

/* Of each voter. `lease`: the ballot that has it. `last`: the one that had it when the voter left M.
 * `owes`, in N: the voters of M whose `last` may still run. */
byte group[4];
bool sealed[4];
byte promised[4];
byte accepted[4];
byte lease[4];
byte last[4];
byte owes[4];
#define LAST(v, u) ((owes[v] & BIT(u)) -> last[u] : 0)
#define OWES_NO_OTHER(v, b) (FREE_FOR(LAST(v, 0), b) && FREE_FOR(LAST(v, 1), b) && FREE_FOR(LAST(v, 2), b))

/* Of each proposer: the ballot in use, 0 for none, and who promised it; where it is proposed; whether
 * it was held. */
byte ballot[2];
byte tries[2];
byte promises[2];
bool in_m[2];
bool in_n[2];
bool held[2];
#define NODE(p) ((p) == 0 -> 0 : RIVAL)

/* Voters that granted a ballot, and may not grant it to another yet. It runs while they are most. */
byte grants_m[5];
byte grants_n[9];
#ifdef BOUND
/* Those that granted it for a restart. Those that the node counts and that keep to it no more: none. */
byte long_m[5];
byte long_n[9];
byte lost_m[5];
byte lost_n[9];
/* Of each proposer: its switch has the end of this ballot; this one was asked for longer. */
bool bounded[2];
bool away[2];
/* It was said of that ballot to the voters of M, of N; the ballot of which a voter heeded it. */
bool said_m[5];
bool said_n[9];
byte heeded[4];
#define LONG_M(b) long_m[b]
#define LONG_N(b) long_n[b]
#define LOST_M(b) lost_m[b]
#define LOST_N(b) lost_n[b]
#else
#define LONG_M(b) 0
#define LONG_N(b) 0
#define LOST_M(b) 0
#define LOST_N(b) 0
#endif
#define ALL_M(b) (grants_m[b] | LONG_M(b) | LOST_M(b))
#define ALL_N(b) (grants_n[b] | LONG_N(b) | LOST_N(b))
#define RUNS_M(b) ((b) <= 4 && MOST(ALL_M(((b) <= 4 -> (b) : 0))))
#define RUNS(b) (RUNS_M(b) || MOST(ALL_N(b)))
byte newest = 0; /* of all that ever ran */

/* After `b` was granted by one more: at most one node runs it, and epochs rise. */
#define NO_CLASH(other) assert(!(RUNS(other) && OWNER(other) != OWNER(b)));
inline check(b) {
    if
    :: RUNS(b) ->
        EACH_BALLOT(NO_CLASH)
#ifndef TWO_HOLDERS
        assert(b >= newest);
#endif
        newest = b;
        held[OWNER(b)] = 1
#ifdef REACH
        ; assert(!MOST(grants_n[REACH]))
#endif
    :: else -> skip
    fi
}

/* A lease at voter `u` is over, and so is what its node was granted before by other ballots: a later
 * grant to the same node never ends before an earlier one. `p`: the node's proposer. */
#ifdef BOUND
#define END_M(u, b) grants_m[b] = grants_m[b] & ~BIT(u); long_m[b] = long_m[b] & ~BIT(u);
#define END_N(u, b) grants_n[b] = grants_n[b] & ~BIT(u); long_n[b] = long_n[b] & ~BIT(u);
#define NONE_M(b) grants_m[b] = 0; long_m[b] = 0; lost_m[b] = 0;
#define NONE_N(b) grants_n[b] = 0; long_n[b] = 0; lost_n[b] = 0;
#define REST(p) bounded[p] = 0; away[p] = 0
#else
#define END_M(u, b) grants_m[b] = grants_m[b] & ~BIT(u);
#define END_N(u, b) grants_n[b] = grants_n[b] & ~BIT(u);
#define NONE_M(b) grants_m[b] = 0;
#define NONE_N(b) grants_n[b] = 0;
#define REST(p) skip
#endif
inline end_m(u, p) {
    END_M(u, 1 + (p)) END_M(u, 3 + (p)) skip
}

inline end_n(u, p) {
    END_N(u, 1 + (p)) END_N(u, 3 + (p)) END_N(u, 5 + (p)) END_N(u, 7 + (p)) skip
}

/* A tenure that no majority grants any more is over, and so are leases that nobody counts. */
#define LEAVE(p) \
    if :: ballot[p] <= 4 -> NONE_M(ballot[p]) :: else -> skip fi; \
    NONE_N(ballot[p]) \
    ballot[p] = 0; promises[p] = 0; in_m[p] = 0; in_n[p] = 0; held[p] = 0; REST(p)
#define TIDY_HOLDER(p) if :: held[p] && !RUNS(ballot[p]) -> LEAVE(p) :: else -> skip fi;
#define KEPT_M(b) (grants_m[b] | LONG_M(b))
#define KEPT_N(b) (grants_n[b] | LONG_N(b))
#define COUNTED_M(v, p) ((KEPT_M(1 + (p)) | KEPT_M(3 + (p))) & BIT(v))
#define COUNTED_N(v, p) ((KEPT_N(1 + (p)) | KEPT_N(3 + (p)) | KEPT_N(5 + (p)) | KEPT_N(7 + (p))) & BIT(v))
#define COUNTED(v, p) (group[v] == M && COUNTED_M(v, p) || group[v] == N && COUNTED_N(v, p))
#define TIDY_LEASE(v) if :: lease[v] != 0 && !COUNTED(v, OWNER(lease[v])) -> lease[v] = 0 :: else -> skip fi;
#define TIDY_LAST(u) \
    if \
    :: last[u] != 0 && !COUNTED_M(u, OWNER(last[u])) -> \
        owes[0] = owes[0] & ~BIT(u); owes[1] = owes[1] & ~BIT(u); owes[3] = owes[3] & ~BIT(u) \
    :: else -> skip \
    fi;
inline tidy() {
    TIDY_HOLDER(0) TIDY_HOLDER(1)
    TIDY_LEASE(0) TIDY_LEASE(1) TIDY_LEASE(2) TIDY_LEASE(3)
    TIDY_LAST(0) TIDY_LAST(1) TIDY_LAST(2)
}

/* ---- a voter ---- */

#define VOTES(b) ((b) <= 4 && group[v] == M && !sealed[v] || (b) > 4 && group[v] == N)

#define ON_PREPARE(p) \
    :: d_step { \
        ballot[p] != 0 && !in_m[p] && !in_n[p] && VOTES(ballot[p]) && ballot[p] > promised[v] && \
        FREE_FOR(lease[v], ballot[p]) && OWES_NO_OTHER(v, ballot[p]) -> \
        promised[v] = ballot[p]; \
        promises[p] = promises[p] | BIT(v) }

#define RAISE(to) if :: (to) > promised[v] -> promised[v] = (to) :: else -> skip fi;

#define ON_PROPOSE(p) \
    :: d_step { \
        in_m[p] && group[v] == M && !sealed[v] && ballot[p] >= accepted[v] && \
        FREE_FOR(lease[v], ballot[p]) && !(grants_m[ballot[p]] & BIT(v)) -> \
        RAISE(ballot[p]) accepted[v] = ballot[p]; lease[v] = ballot[p]; \
        grants_m[ballot[p]] = grants_m[ballot[p]] | BIT(v); \
        check(ballot[p]) } \
    :: d_step { \
        in_n[p] && group[v] == N && ballot[p] >= accepted[v] && \
        FREE_FOR(lease[v], ballot[p]) && OWES_NO_OTHER(v, ballot[p]) && \
        !(grants_n[ballot[p]] & BIT(v)) -> \
        RAISE(ballot[p]) accepted[v] = ballot[p]; lease[v] = ballot[p]; \
        grants_n[ballot[p]] = grants_n[ballot[p]] | BIT(v); \
        check(ballot[p]) }

#ifdef BOUND
#ifdef LATE
#define HEEDS(v, b) 1
#else
#define HEEDS(v, b) (heeded[v] != (b))
#endif
#define OWES(v, b) (LAST(v, 0) == (b) || LAST(v, 1) == (b) || LAST(v, 2) == (b))

/* What it granted to the node by other ballots, and to this one for longer, it keeps to no more. */
#define LOSE_M(v, b) lost_m[b] = lost_m[b] | (KEPT_M(b) & BIT(v)); END_M(v, b)
#define LOSE_N(v, b) lost_n[b] = lost_n[b] | (KEPT_N(b) & BIT(v)); END_N(v, b)
#define LOSE_LONG_M(v, b) lost_m[b] = lost_m[b] | (long_m[b] & BIT(v)); long_m[b] = long_m[b] & ~BIT(v);
#define LOSE_LONG_N(v, b) lost_n[b] = lost_n[b] | (long_n[b] & BIT(v)); long_n[b] = long_n[b] & ~BIT(v);
#define UNLESS(o, b, DO) if :: (o) != (b) -> DO :: else -> skip fi;
inline heed_m(v, b) {
    if
    :: HEEDS(v, b) ->
        UNLESS(1 + OWNER(b), b, LOSE_M(v, 1 + OWNER(b)))
        UNLESS(3 + OWNER(b), b, LOSE_M(v, 3 + OWNER(b)))
        LOSE_LONG_M(v, b)
        heeded[v] = b
    :: else -> skip
    fi
}

inline heed_n(v, b) {
    if
    :: HEEDS(v, b) && !OWES(v, b) ->
        UNLESS(1 + OWNER(b), b, LOSE_N(v, 1 + OWNER(b)))
        UNLESS(3 + OWNER(b), b, LOSE_N(v, 3 + OWNER(b)))
        UNLESS(5 + OWNER(b), b, LOSE_N(v, 5 + OWNER(b)))
        UNLESS(7 + OWNER(b), b, LOSE_N(v, 7 + OWNER(b)))
        LOSE_LONG_N(v, b)
        owes[v] = 0;
        heeded[v] = b
    :: else -> skip
    fi
}

/* It counts where its proposer is there yet to hear the answer. */
#define ON_BOUND_M(b) \
    :: d_step { \
        said_m[b] && group[v] == M && !sealed[v] && (b) >= accepted[v] && FREE_FOR(lease[v], b) -> \
        RAISE(b) accepted[v] = b; heed_m(v, b); \
        if \
        :: ballot[OWNER(b)] == (b) -> \
            lease[v] = b; grants_m[b] = grants_m[b] | BIT(v); check(b) \
        :: else -> skip \
        fi; \
        tidy() }
#define ON_BOUND_N(b) \
    :: d_step { \
        said_n[b] && group[v] == N && (b) >= accepted[v] && FREE_FOR(lease[v], b) && \
        OWES_NO_OTHER(v, b) -> \
        RAISE(b) accepted[v] = b; heed_n(v, b); \
        if \
        :: ballot[OWNER(b)] == (b) -> \
            lease[v] = b; grants_n[b] = grants_n[b] | BIT(v); check(b) \
        :: else -> skip \
        fi; \
        tidy() }
#define ON_LONG(p) \
    :: d_step { \
        away[p] && in_m[p] && group[v] == M && !sealed[v] && ballot[p] >= accepted[v] && \
        FREE_FOR(lease[v], ballot[p]) && !(long_m[ballot[p]] & BIT(v)) -> \
        RAISE(ballot[p]) accepted[v] = ballot[p]; \
        if :: bounded[p] -> heed_m(v, ballot[p]) :: else -> skip fi; \
        lease[v] = ballot[p]; long_m[ballot[p]] = long_m[ballot[p]] | BIT(v); check(ballot[p]) } \
    :: d_step { \
        away[p] && in_n[p] && group[v] == N && ballot[p] >= accepted[v] && \
        FREE_FOR(lease[v], ballot[p]) && OWES_NO_OTHER(v, ballot[p]) && \
        !(long_n[ballot[p]] & BIT(v)) -> \
        RAISE(ballot[p]) accepted[v] = ballot[p]; \
        if :: bounded[p] -> heed_n(v, ballot[p]) :: else -> skip fi; \
        lease[v] = ballot[p]; long_n[ballot[p]] = long_n[ballot[p]] | BIT(v); check(ballot[p]) }
#endif

#define ON_OPEN(missing) \
    :: d_step { \
        MAY_OPEN(missing) && IN_N(v) && group[v] != N -> \
        if \
        :: group[v] == M && !sealed[v] -> sealed[v] = 1; last[v] = lease[v] \
        :: else -> skip \
        fi; \
        WAIT(missing) \
        group[v] = N; lease[v] = 0; promised[v] = 0; HEEDS_ANEW \
        RAISE(LAST(v, 0)) RAISE(LAST(v, 1)) RAISE(LAST(v, 2)) accepted[v] = promised[v]; \
        tidy() }

#ifdef BOUND
#define HEEDS_ANEW heeded[v] = 0;
#else
#define HEEDS_ANEW
#endif

#ifdef NO_WAIT
#define WAIT(missing)
#else
#define WAIT(missing) owes[v] = OPENER_KNOWS(missing) | (lease[v] != 0 -> BIT(v) : 0);
#endif

#ifdef SKIP_SEAL
#define MAY_OPEN(missing) 1
#define OPENER_KNOWS(missing) 0
#else
#define MAY_OPEN(missing) (sealed[(missing + 1) % 3] && sealed[(missing + 2) % 3])
#define OPENER_KNOWS(missing) (7 & ~BIT(missing))
#endif

#define LAST_IS_OVER(u) \
    :: d_step { (owes[v] & BIT(u)) && last[u] != 0 -> end_m(u, OWNER(last[u])); tidy() }

proctype voter(byte v) {
end:
    do
    ON_PREPARE(0)
    ON_PREPARE(1)
    ON_PROPOSE(0)
    ON_PROPOSE(1)
#ifdef BOUND
    EACH_OF_M(ON_BOUND_M)
    ON_LONG(0)
#ifndef ONE_GROUP
    EACH_BALLOT(ON_BOUND_N)
#endif
#endif
#ifndef ONE_GROUP
    :: d_step { group[v] == M && !sealed[v] -> sealed[v] = 1; last[v] = lease[v] }
    ON_OPEN(0)
    ON_OPEN(1)
    ON_OPEN(2)
    LAST_IS_OVER(0)
    LAST_IS_OVER(1)
    LAST_IS_OVER(2)
#endif
    :: d_step { /* its lease ends */
        lease[v] != 0 ->
        if
        :: group[v] == M -> end_m(v, OWNER(lease[v]))
        :: else -> end_n(v, OWNER(lease[v]))
        fi;
        tidy() }
#ifdef FORGET
    :: d_step { lease[v] != 0 -> lease[v] = 0 }
#endif
    od
}

/* ---- a proposer ---- */

#define TAKE_UP(group) \
    :: d_step { \
        ballot[p] == 0 && tries[p] < TRIES_OF(p) -> \
        ballot[p] = BALLOT(p, group, tries[p]); \
        tries[p]++ } \
    LATER(group)

/* With BOUND the rival has one try, before or after the other's second. */
#ifdef BOUND
#define LATER(group) \
    :: d_step { \
        p == 1 && ballot[p] == 0 && tries[p] == 0 -> \
        ballot[p] = BALLOT(p, group, 1); \
        tries[p]++ }
#else
#define LATER(group)
#endif

#define NOTHING_RUNS(b) if :: OWNER(b) == p -> NONE_N(b) :: else -> skip fi;
#define ARMED_N(b) if :: OWNER(b) == p && (b) != ballot[p] -> NONE_N(b) :: else -> skip fi;
#define ARMED_M(b) if :: OWNER(b) == p && (b) != ballot[p] -> NONE_M(b) :: else -> skip fi;

#define FORGET_IT(v) if :: lease[v] == ballot[p] -> lease[v] = 0 :: else -> skip fi;

proctype proposer(byte p) {
end:
    do
    TAKE_UP(M)
#ifndef ONE_GROUP
    TAKE_UP(N)
#endif
    :: d_step {
        MOST(promises[p]) && (promises[p] & BIT(NODE(p))) ->
        if :: ballot[p] <= 4 -> in_m[p] = 1 :: else -> in_n[p] = 1 fi;
        promises[p] = 0 }
    :: d_step { held[p] && !in_n[p] -> in_n[p] = 1 } /* a holder moves */
    :: d_step { /* it stops in time, or gives up its try */
        ballot[p] != 0 ->
#ifdef GIVE_BACK
        if :: !RUNS(ballot[p]) -> FORGET_IT(0) FORGET_IT(1) FORGET_IT(2) :: else -> skip fi;
#endif
        LEAVE(p);
        tidy() }
    :: d_step { /* nothing is left of it at the node, and that is said */
        in_m[p] || in_n[p] ->
        NONE_M(1 + p) NONE_M(3 + p)
        EACH_BALLOT(NOTHING_RUNS)
        LEAVE(p);
        tidy() }
    :: d_step { /* its agent crashes: the replica runs on */
        ballot[p] != 0 ->
        ballot[p] = 0; promises[p] = 0; in_m[p] = 0; in_n[p] = 0; held[p] = 0; REST(p) }
#ifdef BOUND
#ifndef UNARMED /* which fails without it */
    :: d_step { p == 0 && held[p] && !away[p] -> away[p] = 1 } /* it is to be restarted */
#endif
    :: d_step { /* the switch ends by this ballot what ran by another */
        p == 0 && held[p] && !away[p] && !bounded[p] ->
#ifndef UNARMED
        EACH_OF_M(ARMED_M)
        EACH_BALLOT(ARMED_N)
#endif
        bounded[p] = 1;
        tidy() }
    :: d_step { bounded[p] && in_m[p] && ballot[p] <= 4 && !said_m[ballot[p]] -> said_m[ballot[p]] = 1 }
#ifndef ONE_GROUP
    :: d_step { bounded[p] && in_n[p] && !said_n[ballot[p]] -> said_n[ballot[p]] = 1 }
#endif
#endif
    od
}

init {
    atomic {
        group[0] = M; group[1] = M; group[2] = M;
        run voter(0); run voter(1); run voter(2); run voter(3);
        run proposer(0); run proposer(1)
    }
}
