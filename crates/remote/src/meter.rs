//! Counts for one lookup how long it waits for a connection, and for a new one to be made.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use postkeep_table::spent::Spent;
use tokio::time::Instant;

tokio::task_local! {
    static METER: Cell<Spent>;
}

/// Runs a lookup that has spent `so_far` already; with its end comes what it has spent then.
pub(crate) async fn metered<F: Future>(so_far: Spent, lookup: F) -> (F::Output, Spent) {
    let meter = Cell::new(so_far);
    METER
        .scope(meter, async {
            let end = lookup.await;
            (end, METER.with(Cell::get))
        })
        .await
}

/// The lookup at hand has spent more; nothing when none is at hand.
pub(crate) fn add(more: Spent) {
    let _ = METER.try_with(|meter| {
        let mut spent = meter.get();
        spent += more;
        meter.set(spent);
    });
}

/// Waits for a free connection.
pub(crate) async fn in_queue<F: Future>(wait: F) -> F::Output {
    let (end, queue) = timed(wait).await;
    add(Spent {
        queue,
        ..Spent::default()
    });
    end
}

/// Makes a connection.
pub(crate) async fn connecting<F: Future>(work: F) -> F::Output {
    let (end, connect) = timed(work).await;
    add(Spent {
        connect,
        ..Spent::default()
    });
    end
}

async fn timed<F: Future>(work: F) -> (F::Output, Duration) {
    let began = Instant::now();
    let end = work.await;
    (end, began.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lookup_knows_what_it_has_waited_for() {
        let pause = |milliseconds| tokio::time::sleep(Duration::from_millis(milliseconds));
        let before = Spent {
            queue: Duration::from_millis(7),
            ..Spent::default()
        };
        let lookup = async {
            in_queue(pause(20)).await;
            connecting(pause(300)).await;
            in_queue(pause(1)).await;
            pause(4000).await;
            "end"
        };
        let (end, spent) = metered(before, lookup).await;
        assert_eq!(end, "end");
        // The clock of a paused runtime moves by whole milliseconds.
        assert_eq!(spent.queue.as_millis(), 28);
        assert_eq!(spent.connect.as_millis(), 300);
        // Without a lookup nothing is counted.
        in_queue(pause(1)).await;
    }
}
