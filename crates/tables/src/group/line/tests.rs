use super::*;

use std::collections::HashSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Next {
    Join,
    Take,
    /// The commit has returned.
    PassOn,
    /// The answer to a change that somebody else committed.
    Answer,
    Wait,
    Done,
}

/// Clients that make one change after the other, and what is between them and the file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    line: Line<usize>,
    clients: Vec<Next>,
    /// Changes that each still has to make.
    left: Vec<usize>,
    /// Who commits right now, and whose changes.
    committing: Option<usize>,
    batch: Vec<usize>,
    /// Whose changes are not committed, in the order in which they got in line.
    pending: Vec<usize>,
}

impl World {
    fn step(&mut self, client: usize, size: usize) {
        match self.clients[client] {
            Next::Join => {
                self.pending.push(client);
                self.clients[client] = match self.line.join(size, client) {
                    Place::Leads => Next::Take,
                    Place::Waits => Next::Wait,
                };
            }
            Next::Take => {
                assert_eq!(self.committing, None, "two transactions at a time");
                self.committing = Some(client);
                self.batch = self.line.take();
                assert_eq!(self.batch.first(), Some(&client));
                assert!(size * (self.batch.len() - 1) < MOST_BYTES);
                self.clients[client] = Next::PassOn;
            }
            Next::PassOn => {
                assert_eq!(self.committing.take(), Some(client));
                let batch = std::mem::take(&mut self.batch);
                assert!(self.pending.starts_with(&batch), "not in order: {self:?}");
                self.pending.drain(..batch.len());
                if let Some(&next) = self.line.pass_on() {
                    assert_eq!(self.clients[next], Next::Wait);
                    self.clients[next] = Next::Take;
                }
                for other in batch {
                    let was = if other == client {
                        Next::PassOn
                    } else {
                        Next::Wait
                    };
                    assert_eq!(self.clients[other], was);
                    self.clients[other] = Next::Answer;
                }
            }
            Next::Answer => {
                self.left[client] -= 1;
                self.clients[client] = if self.left[client] == 0 {
                    Next::Done
                } else {
                    Next::Join
                };
            }
            Next::Wait | Next::Done => unreachable!("has no step to take"),
        }
    }
}

/// Goes to every state that any order of steps leads to; returns how many there are, and the most changes that shared
/// a commit.
fn every_state(clients: usize, changes: usize, size: usize) -> (usize, usize) {
    let first = World {
        line: Line::default(),
        clients: vec![Next::Join; clients],
        left: vec![changes; clients],
        committing: None,
        batch: Vec::new(),
        pending: Vec::new(),
    };
    let (mut seen, mut most) = (HashSet::from([first.clone()]), 0);
    let mut reached = vec![first];
    while let Some(world) = reached.pop() {
        most = most.max(world.batch.len());
        // What is not committed is in the batch or in line, each change once.
        let line = world.line.waiting.iter().map(|(_, client)| client);
        assert!(world.pending.iter().eq(world.batch.iter().chain(line)));
        let ready: Vec<usize> = (0..clients)
            .filter(|&client| !matches!(world.clients[client], Next::Wait | Next::Done))
            .collect();
        if ready.is_empty() {
            // Nobody waits for ever, and the next one would lead.
            assert!(
                world.clients.iter().all(|next| *next == Next::Done),
                "{world:?}"
            );
            assert!(!world.line.led && world.pending.is_empty(), "{world:?}");
        }
        for client in ready {
            let mut next = world.clone();
            next.step(client, size);
            if seen.insert(next.clone()) {
                reached.push(next);
            }
        }
    }
    (seen.len(), most)
}

#[test]
fn every_order_of_steps_commits_each_change_once_and_in_order() {
    for (clients, changes) in [(1, 3), (2, 4), (3, 3), (4, 2), (5, 1)] {
        let (states, most) = every_state(clients, changes, 1);
        println!("{clients} clients, {changes} changes each: {states} states");
        assert_eq!(most, clients);
        assert!(states > 100 || clients == 1);
    }
}

#[test]
fn every_order_of_steps_keeps_large_changes_apart() {
    assert_eq!(every_state(4, 2, MOST_BYTES).1, 1);
    assert_eq!(every_state(4, 2, MOST_BYTES / 2).1, 2);
}

#[test]
fn a_commit_is_bounded_in_number_and_size() {
    let mut line = Line::default();
    for number in 0..=MOST {
        line.join(1, number);
    }
    assert_eq!(line.take(), (0..MOST).collect::<Vec<_>>());
    assert_eq!(line.pass_on(), Some(&MOST));
    line.join(MOST_BYTES, MOST + 1);
    line.join(1, MOST + 2);
    assert_eq!(line.take(), [MOST, MOST + 1]);
    line.join(usize::MAX, MOST + 3);
    assert_eq!(line.take(), [MOST + 2, MOST + 3]);
    assert_eq!(line.pass_on(), None);
    assert_eq!(line.join(0, 0), Place::Leads);
}
