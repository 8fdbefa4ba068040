//! Random histories of the cache and of a plain list that follows the same rules.
#![allow(
    clippy::unwrap_used,
    reason = "a test may stop where it finds something wrong"
)]

use std::time::Duration;

use postkeep_cache::{Answer, Cache, Entered, Failure, Kept, Settings, State, Ticket};
use postkeep_table::CacheCounts;
use proptest::prelude::*;

/// What an entry costs beside its text is told by the cache itself: the model only has to agree on the sum.
fn overhead() -> usize {
    let cache = Cache::<()>::new(&settings(usize::MAX / 2, usize::MAX / 2));
    cache.put(
        Duration::ZERO,
        Duration::ZERO,
        0,
        b"",
        Ok(Answer::Found(b"")),
    );
    usize::try_from(cache.counts().bytes).unwrap()
}

fn settings(max_entries: usize, max_bytes: usize) -> Settings {
    Settings {
        ttl: Duration::from_secs(20),
        negative_ttl: Duration::from_secs(4),
        stale_ttl: Duration::from_secs(7),
        retry_delay: Duration::from_secs(2),
        refresh: 50,
        max_entries,
        max_bytes,
    }
}

type Question = (u32, Vec<u8>);
type Said = Result<Option<Vec<u8>>, Failure>;

#[derive(Clone, Debug)]
struct Item {
    question: Question,
    said: Said,
    fresh: u64,
    refresh: u64,
    stale: u64,
    retry: u64,
    visited: bool,
    claimed: bool,
}

#[derive(Debug)]
struct Pending {
    number: usize,
    question: Question,
    begun: u64,
    waiters: Vec<u32>,
}

/// Everything in seconds.
struct Model {
    settings: Settings,
    overhead: usize,
    /// From old to new.
    items: Vec<Item>,
    hand: Option<Question>,
    pending: Vec<Pending>,
    counts: CacheCounts,
}

impl Model {
    fn seconds(time: Duration) -> u64 {
        time.as_secs()
    }

    fn item(&mut self, question: &Question) -> Option<&mut Item> {
        self.items
            .iter_mut()
            .find(|item| item.question == *question)
    }

    /// What is known, and whether to ask again.
    fn peek(&mut self, now: u64, question: &Question, may_refresh: bool) -> Option<(Said, bool)> {
        let item = self.item(question)?;
        let said = item.said.clone();
        if said.is_err() {
            if now >= item.retry {
                return None;
            }
            self.counts.refused += 1;
            return Some((said, false));
        }
        if now < item.fresh {
            item.visited = true;
            let refresh = may_refresh && now >= item.refresh && !item.claimed;
            item.claimed |= refresh;
            self.counts.hits += 1;
            return Some((said, refresh));
        }
        if now < item.stale && now < item.retry {
            item.visited = true;
            self.counts.stale += 1;
            return Some((said, false));
        }
        None
    }

    fn dead(item: &Item, now: u64) -> bool {
        now >= if item.said.is_err() {
            item.retry
        } else {
            item.stale
        }
    }

    fn bytes(&self) -> usize {
        let cost = |item: &Item| {
            let value = item.said.clone().ok().flatten().unwrap_or_default();
            self.overhead + item.question.1.len() + value.len()
        };
        self.items.iter().map(cost).sum()
    }

    fn remove(&mut self, question: &Question) -> bool {
        let Some(at) = self
            .items
            .iter()
            .position(|item| item.question == *question)
        else {
            return false;
        };
        if self.hand.as_ref() == Some(question) {
            self.hand = self.items.get(at + 1).map(|item| item.question.clone());
        }
        self.items.remove(at).visited
    }

    fn put(&mut self, now: u64, mut item: Item) {
        item.visited = self.remove(&item.question);
        let value = item.said.clone().ok().flatten().unwrap_or_default();
        let cost = self.overhead + item.question.1.len() + value.len();
        if cost > self.settings.max_bytes {
            return;
        }
        while self.items.len() >= self.settings.max_entries
            || self.bytes() + cost > self.settings.max_bytes
        {
            let mut at = match &self.hand {
                Some(hand) => self
                    .items
                    .iter()
                    .position(|item| item.question == *hand)
                    .unwrap(),
                None => 0,
            };
            while self.items[at].visited && !Self::dead(&self.items[at], now) {
                self.items[at].visited = false;
                at = (at + 1) % self.items.len();
            }
            let question = self.items[at].question.clone();
            self.hand = Some(question.clone());
            self.remove(&question);
            self.counts.evictions += 1;
        }
        self.items.push(item);
    }

    /// Takes an answer in; what to tell instead of an error.
    fn settle(&mut self, begun: u64, now: u64, question: &Question, said: &Said) -> Option<Said> {
        let stale_ttl = Self::seconds(self.settings.stale_ttl);
        let retry = now + Self::seconds(self.settings.retry_delay);
        let Err(failure) = *said else {
            let ttl = match said {
                Ok(Some(_)) => Self::seconds(self.settings.ttl),
                _ => Self::seconds(self.settings.negative_ttl),
            };
            let item = Item {
                question: question.clone(),
                said: said.clone(),
                fresh: begun + ttl,
                refresh: begun + ttl / 2,
                stale: begun + ttl + stale_ttl,
                retry: 0,
                visited: false,
                claimed: false,
            };
            if item.stale <= now {
                self.remove(question);
            } else {
                self.put(now, item);
            }
            return None;
        };
        self.counts.failures += 1;
        if let Some(item) = self.item(question)
            && item.said.is_ok()
            && (now < item.fresh || (failure == Failure::Retry && now < item.stale))
        {
            item.retry = retry;
            item.refresh = retry;
            item.claimed = false;
            item.visited = true;
            return Some(item.said.clone());
        }
        let item = Item {
            question: question.clone(),
            said: Err(failure),
            fresh: 0,
            refresh: 0,
            stale: 0,
            retry,
            visited: false,
            claimed: false,
        };
        self.put(now, item);
        None
    }
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Peek(Question, bool),
    Enter(Question),
    Refresh(Question),
    /// The end of one of the questions that are being asked.
    Finish(prop::sample::Index, Said),
    Put(Question, u64, Said),
}

/// One of few, which are asked for again and again.
fn few() -> impl Strategy<Value = Question> {
    (0..3_u8).prop_map(|number| (0, vec![number]))
}

fn question() -> impl Strategy<Value = Question> {
    (
        0..2_u32,
        prop_oneof![
            (0..6_u8).prop_map(|number| vec![number]),
            (0..40_u8).prop_map(|number| vec![b'k', number]),
        ],
    )
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        4 => (0..120_usize).prop_map(|length| Ok(Some(vec![b'v'; length]))),
        2 => Just(Ok(None)),
        2 => Just(Err(Failure::Retry)),
        1 => Just(Err(Failure::Config)),
    ]
}

fn step<Q>(question: fn() -> Q) -> impl Strategy<Value = Step>
where
    Q: Strategy<Value = Question>,
{
    prop_oneof![
        2 => (0..6_u64).prop_map(Step::Wait),
        6 => (question(), any::<bool>()).prop_map(|(question, refresh)| Step::Peek(question, refresh)),
        6 => question().prop_map(Step::Enter),
        2 => question().prop_map(Step::Refresh),
        6 => (any::<prop::sample::Index>(), said()).prop_map(|(which, said)| Step::Finish(which, said)),
        3 => (question(), 0..25_u64, said()).prop_map(|(question, ago, said)| Step::Put(question, ago, said)),
    ]
}

fn answer(said: &Said) -> Result<Answer<'_>, Failure> {
    match said {
        Ok(Some(value)) => Ok(Answer::Found(value)),
        Ok(None) => Ok(Answer::Absent),
        Err(failure) => Err(*failure),
    }
}

fn known(state: State, value: Vec<u8>) -> Said {
    assert!(state == State::Found || value.is_empty());
    match state {
        State::Found => Ok(Some(value)),
        State::Absent => Ok(None),
        State::Failed(failure) => Err(failure),
    }
}

fn kept(kept: Option<Kept>) -> Option<Said> {
    kept.map(|kept| match kept {
        Kept::Found(value) => Ok(Some(value)),
        Kept::Absent => Ok(None),
    })
}

fn agree(max_entries: usize, room: usize, steps: Vec<Step>) {
    let overhead = overhead();
    let settings = settings(max_entries, room * (overhead + 20));
    let cache = Cache::<u32>::new(&settings);
    let mut model = Model {
        settings: settings.clone(),
        overhead,
        items: Vec::new(),
        hand: None,
        pending: Vec::new(),
        counts: CacheCounts::default(),
    };
    let mut tickets: Vec<(usize, Ticket)> = Vec::new();
    let (mut now, mut numbers) = (100, 0..);
    for (waiter, step) in (0..).zip(steps) {
        let time = Duration::from_secs(now);
        match step {
            Step::Wait(seconds) => now += seconds,
            Step::Peek(question, may_refresh) => {
                let mut value = b"<".to_vec();
                let found = cache.peek(time, question.0, &question.1, may_refresh, &mut value);
                let found =
                    found.map(|found| (known(found.state, value[1..].to_vec()), found.refresh));
                assert_eq!(found, model.peek(now, &question, may_refresh));
            }
            Step::Enter(question) => {
                let mut value = Vec::new();
                let entered = cache.enter(time, question.0, &question.1, &mut value, waiter);
                let wanted = model.peek(now, &question, false);
                let pending = model
                    .pending
                    .iter_mut()
                    .find(|other| other.question == question);
                match (entered, wanted, pending) {
                    (Entered::Known(state, back), Some((said, _)), _) => {
                        assert_eq!((known(state, value), back), (said, waiter));
                    }
                    (Entered::Joined, None, Some(pending)) => {
                        pending.waiters.push(waiter);
                        model.counts.coalesced += 1;
                    }
                    (Entered::Lead(ticket), None, None) => {
                        let number = numbers.next().unwrap();
                        model.pending.push(Pending {
                            number,
                            question,
                            begun: now,
                            waiters: vec![waiter],
                        });
                        model.counts.misses += 1;
                        tickets.push((number, ticket));
                    }
                    (entered, wanted, pending) => panic!("{entered:?} {wanted:?} {pending:?}"),
                }
            }
            Step::Refresh(question) => {
                let due = match model.item(&question) {
                    Some(item) => item.said.is_ok() && now >= item.refresh.min(item.fresh),
                    None => true,
                };
                let asked = model.pending.iter().any(|other| other.question == question);
                let ticket = cache.refresh(time, question.0, &question.1);
                assert_eq!(ticket.is_some(), due && !asked);
                if let Some(ticket) = ticket {
                    let number = numbers.next().unwrap();
                    model.pending.push(Pending {
                        number,
                        question,
                        begun: now,
                        waiters: Vec::new(),
                    });
                    model.counts.refreshes += 1;
                    tickets.push((number, ticket));
                }
            }
            Step::Finish(which, said) => {
                if tickets.is_empty() {
                    continue;
                }
                let (number, ticket) = tickets.swap_remove(which.index(tickets.len()));
                let at = model
                    .pending
                    .iter()
                    .position(|other| other.number == number)
                    .unwrap();
                let pending = model.pending.swap_remove(at);
                let finished = cache.finish(time, ticket, answer(&said));
                let instead = model.settle(pending.begun, now, &pending.question, &said);
                assert_eq!(kept(finished.instead), instead);
                if instead.is_some() {
                    model.counts.stale += pending.waiters.len() as u64;
                }
                assert_eq!(finished.waiters, pending.waiters);
            }
            Step::Put(question, ago, said) => {
                let begun = now - ago;
                let time_begun = Duration::from_secs(begun);
                let instead = cache.put(time_begun, time, question.0, &question.1, answer(&said));
                model.counts.misses += 1;
                let wanted = model.settle(begun, now, &question, &said);
                model.counts.stale += u64::from(wanted.is_some());
                assert_eq!(kept(instead), wanted);
            }
        }
        let counts = cache.counts();
        model.counts.entries = model.items.len() as u64;
        model.counts.bytes = model.bytes() as u64;
        assert_eq!(counts, model.counts);
        assert!(counts.entries <= settings.max_entries as u64);
        assert!(counts.bytes <= settings.max_bytes as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn small_caches_behave_like_a_list(
        max_entries in 1..12_usize,
        room in 1..12_usize,
        steps in proptest::collection::vec(step(question), 0..160),
    ) {
        agree(max_entries, room, steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn few_keys_too(steps in proptest::collection::vec(step(few), 0..600)) {
        agree(64, 80, steps);
    }

    #[test]
    fn larger_ones_too(steps in proptest::collection::vec(step(question), 0..600)) {
        agree(64, 80, steps);
    }
}
