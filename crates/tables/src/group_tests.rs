//! Groups of real threads; `tests/group_model` goes through the orders in which they may run.

use crate::group::{Group, MOST, Store};
use crate::sync::Mutex;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

/// Numbers; some cannot be stored. A transaction begins when the test says so.
struct Numbers {
    begin: Mutex<mpsc::Receiver<()>>,
    waiting: AtomicUsize,
    kept: Mutex<Vec<Vec<u32>>>,
}

const BAD: u32 = 1000;
const BREAKS: u32 = 2000;
/// To be made alone would help nobody.
const LATE: u32 = 3000;

impl Store for Numbers {
    type Change = u32;
    type Error = u32;

    fn apply<'c>(&self, changes: &dyn Fn() -> Vec<&'c u32>) -> Result<Vec<bool>, u32> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // As often as one likes, or until told to go on.
        let _ = self.begin.lock().unwrap().recv();
        let changes: Vec<u32> = changes().into_iter().copied().collect();
        assert!(!changes.contains(&BREAKS), "on purpose");
        if let Some(bad) = changes.iter().find(|number| **number >= BAD) {
            return Err(*bad);
        }
        self.kept.lock().unwrap().push(changes.clone());
        Ok(changes.iter().map(|number| number % 2 == 1).collect())
    }

    fn for_each(&self, error: &u32) -> Option<u32> {
        (*error == LATE).then_some(LATE)
    }
}

/// What a thread was told about its change.
type Told = Option<Result<bool, u32>>;

/// Has one thread begin, the others wait in line, and then lets all go on: what each got, and the transactions.
fn run(first: u32, others: &[u32]) -> (Vec<Told>, Vec<Vec<u32>>) {
    let (go, begin) = mpsc::channel();
    let store = Numbers {
        begin: Mutex::new(begin),
        waiting: AtomicUsize::new(0),
        kept: Mutex::default(),
    };
    let group = Group::default();
    let results = thread::scope(|scope| {
        let (store, group) = (&store, &group);
        let mut threads = Vec::new();
        let changes = std::iter::once(first).chain(others.iter().copied());
        for (number, change) in changes.enumerate() {
            threads.push(scope.spawn(move || group.commit(1, change, store)));
            if number == 0 {
                while store.waiting.load(Ordering::SeqCst) == 0 {
                    thread::yield_now();
                }
            }
            // Changes get in line in this order.
            while group.waiting() < number + 1 {
                thread::yield_now();
            }
        }
        drop(go);
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or(None))
            .collect()
    });
    assert_eq!(group.waiting(), 0);
    (results, store.kept.into_inner().unwrap())
}

#[test]
fn those_who_come_until_it_begins_share_a_transaction() {
    let (results, kept) = run(1, &[2, 3, 4]);
    let wanted = [true, false, true, false].map(|new| Some(Ok(new)));
    assert_eq!(results, wanted);
    assert_eq!(kept, [[1, 2, 3, 4]]);
}

#[test]
fn one_that_cannot_be_made_spoils_no_other() {
    let (results, kept) = run(1, &[BAD, 3, BAD + 1]);
    let wanted = [Ok(true), Err(BAD), Ok(true), Err(BAD + 1)].map(Some);
    assert_eq!(results, wanted);
    assert_eq!(kept, [[1], [3]]);
    let (results, kept) = run(BAD, &[]);
    assert_eq!((results, kept), (vec![Some(Err(BAD))], vec![]));
}

#[test]
fn what_helps_nobody_is_not_tried_for_each() {
    let (results, kept) = run(LATE, &[1, 3]);
    assert_eq!(results, [Some(Err(LATE)); 3]);
    assert!(kept.is_empty());
}

#[test]
fn nobody_waits_for_a_leader_that_broke_down() {
    let (results, kept) = run(1, &[BREAKS, 3]);
    assert_eq!(results, [None, None, None]);
    assert!(kept.is_empty());
}

#[test]
fn the_next_in_line_leads_when_the_leader_breaks_down() {
    let mut others = [3; MOST];
    others[0] = BREAKS;
    let (results, kept) = run(1, &others);
    // The last one was not in the batch that broke down.
    let (last, rest) = results.split_last().unwrap();
    assert_eq!(*last, Some(Ok(true)));
    assert!(rest.iter().all(Option::is_none));
    assert_eq!(kept, [[3]]);
}

#[test]
fn many_threads_get_the_outcome_of_their_own() {
    const THREADS: u32 = 16;
    const EACH: u32 = 200;
    let (go, begin) = mpsc::channel();
    drop(go);
    let store = Numbers {
        begin: Mutex::new(begin),
        waiting: AtomicUsize::new(0),
        kept: Mutex::default(),
    };
    let group = Group::default();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, group) = (&store, &group);
            scope.spawn(move || {
                for turn in 0..EACH {
                    let number = (thread * EACH + turn) % 1500;
                    let wanted = if number >= BAD {
                        Err(number)
                    } else {
                        Ok(number % 2 == 1)
                    };
                    assert_eq!(group.commit(1, number, store), Some(wanted));
                }
            });
        }
    });
    let kept = store.kept.into_inner().unwrap();
    let wanted = (0..THREADS * EACH).filter(|number| number % 1500 < BAD);
    assert_eq!(kept.iter().map(Vec::len).sum::<usize>(), wanted.count());
    assert!(group.waiting() == 0);
}
