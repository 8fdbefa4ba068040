//! Choosing, among the clients of all workers, the one that makes room for a new one.
//!
//! Each worker names the client that it can best do without; the last of them to answer tells the worker of the
//! one that was chosen.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::shared::{Mailbox, Message};

/// How well a client can be done without; the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// Between two requests.
    Idle,
    /// In the middle of one that it does not go on with, or not taking its reply.
    Slow,
}

/// A client that could make room, and since when nothing has come from it.
pub(crate) type Candidate = (Rank, Instant, u64);

/// One search.
pub(crate) struct Eviction {
    mailboxes: Vec<Arc<Mailbox>>,
    unanswered: AtomicUsize,
    best: Mutex<Option<(Candidate, usize)>>,
}

impl std::fmt::Debug for Eviction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Eviction").finish_non_exhaustive()
    }
}

impl Eviction {
    /// Asks all workers.
    pub(crate) fn begin(mailboxes: &[Arc<Mailbox>]) {
        let eviction = Arc::new(Self {
            mailboxes: mailboxes.to_vec(),
            unanswered: AtomicUsize::new(mailboxes.len()),
            best: Mutex::default(),
        });
        for (worker, mailbox) in mailboxes.iter().enumerate() {
            mailbox.post(Message::Shed {
                eviction: Arc::clone(&eviction),
                worker,
            });
        }
    }

    /// A worker's answer.
    pub(crate) fn answer(&self, worker: usize, candidate: Option<Candidate>) {
        let mut best = self.best.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(candidate) = candidate
            && best.is_none_or(|(best, _)| (candidate.0, candidate.1) < (best.0, best.1))
        {
            *best = Some((candidate, worker));
        }
        let chosen = *best;
        drop(best);
        if self.unanswered.fetch_sub(1, Ordering::SeqCst) == 1
            && let Some(((_, since, token), worker)) = chosen
            && let Some(mailbox) = self.mailboxes.get(worker)
        {
            mailbox.post(Message::Evict { token, since });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_oldest_idle_client_of_all_goes_and_a_slow_one_only_if_there_is_none() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let run = |answers: [Option<Candidate>; 3]| {
            let mailboxes: Vec<Arc<Mailbox>> =
                (0..3).map(|_| Arc::new(Mailbox::new().unwrap())).collect();
            Eviction::begin(&mailboxes);
            let mut told = Vec::new();
            for (mailbox, answer) in mailboxes.iter().zip(answers) {
                let mut messages = Vec::new();
                mailbox.collect(&mut messages);
                for message in messages {
                    if let Message::Shed { eviction, worker } = message {
                        eviction.answer(worker, answer);
                    }
                }
            }
            for (worker, mailbox) in mailboxes.iter().enumerate() {
                let mut messages = Vec::new();
                mailbox.collect(&mut messages);
                told.extend(messages.into_iter().filter_map(|message| match message {
                    Message::Evict { token, .. } => Some((worker, token)),
                    _ => None,
                }));
            }
            told
        };
        let idle = |seconds, token| Some((Rank::Idle, at(seconds), token));
        let slow = |seconds, token| Some((Rank::Slow, at(seconds), token));
        assert_eq!(run([idle(3, 1), idle(2, 2), idle(4, 3)]), [(1, 2)]);
        assert_eq!(run([slow(1, 1), None, idle(4, 3)]), [(2, 3)]);
        assert_eq!(run([slow(1, 1), slow(2, 2), None]), [(0, 1)]);
        assert_eq!(run([None, None, None]), []);
    }
}
