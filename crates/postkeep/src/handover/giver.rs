//! The process that ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use postkeep_scache::transfer::{BindingRecord, Frame, SessionRecord, common_version};
use postkeep_scache::{MovingBinding, MovingSession};
use postkeep_sys::socket;

use super::{Broken, Line, STEP};

/// Has sessions and bindings to give.
pub(crate) trait Giver {
    /// As [`postkeep_scache::Cache::give`].
    fn give(&self) -> Vec<MovingSession<OwnedFd>>;

    /// As [`postkeep_scache::Cache::give_bindings`].
    fn give_bindings(&self) -> Vec<MovingBinding>;

    /// These were not taken.
    fn take_back(&self, sessions: Vec<MovingSession<OwnedFd>>);

    /// Nor were these.
    fn take_bindings_back(&self, bindings: Vec<MovingBinding>);
}

/// Gives all there is to the process at the other end of the line; says how many sessions that was.
///
/// # Errors
/// It broke off; the giver has what was not taken by then.
pub(crate) fn give(line: &mut Line, giver: &impl Giver) -> Result<usize, Broken> {
    let version = line.receive(STEP, |frame, _| match frame {
        Frame::Hello { lowest, highest } => Ok(common_version(lowest, highest)),
        _ => Err(Broken::Unexpected),
    })?;
    line.send(&Frame::Welcome { version }, &[], STEP)?;
    if version == 0 {
        return Err(Broken::Version);
    }
    let (mut number, mut count) = (0, 0);
    loop {
        number += 1;
        let sessions = giver.give();
        if sessions.is_empty() {
            break;
        }
        if let Err(broken) = offer_sessions(line, number, &sessions) {
            giver.take_back(sessions);
            return Err(broken);
        }
        // They are the successor's; our copies are closed here.
        count += sessions.len();
    }
    loop {
        number += 1;
        let bindings = giver.give_bindings();
        if bindings.is_empty() {
            break;
        }
        if let Err(broken) = offer_bindings(line, number, &bindings) {
            giver.take_bindings_back(bindings);
            return Err(broken);
        }
    }
    line.send(&Frame::End, &[], STEP)?;
    Ok(count)
}

fn offer_sessions(
    line: &mut Line,
    number: u32,
    sessions: &[MovingSession<OwnedFd>],
) -> Result<(), Broken> {
    let records = sessions.iter().map(record).collect();
    let descriptors: Vec<BorrowedFd<'_>> = sessions
        .iter()
        .map(|session| session.handle.as_fd())
        .collect();
    let offer = Frame::Sessions {
        number,
        sessions: records,
    };
    line.send(&offer, &descriptors, STEP)?;
    settle(line, number)
}

/// A session as it is written down.
pub(super) fn record(session: &MovingSession<OwnedFd>) -> SessionRecord<'_> {
    SessionRecord {
        mark: socket::cookie(&session.handle).unwrap_or(0),
        left: session.left,
        label: &session.label,
        property: &session.property,
    }
}

fn offer_bindings(line: &mut Line, number: u32, bindings: &[MovingBinding]) -> Result<(), Broken> {
    let records = bindings.iter().map(|binding| BindingRecord {
        left: binding.left,
        label: &binding.label,
        property: &binding.property,
        endpoint: &binding.endpoint,
    });
    let offer = Frame::Bindings {
        number,
        bindings: records.collect(),
    };
    line.send(&offer, &[], STEP)?;
    settle(line, number)
}

/// Waits until the offer has come, and gives it away; what fails before the last word is sent leaves it here.
fn settle(line: &mut Line, number: u32) -> Result<(), Broken> {
    line.receive(STEP, |frame, _| match frame {
        Frame::Received { number: received } if received == number => Ok(()),
        _ => Err(Broken::Unexpected),
    })?;
    line.send(&Frame::Commit { number }, &[], STEP)
}
