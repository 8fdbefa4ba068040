//! The process that begins.

use std::os::fd::OwnedFd;
use std::time::Duration;

use postkeep_scache::transfer::{Frame, VERSION};
use postkeep_scache::{MovingBinding, MovingSession};
use postkeep_sys::socket;

use super::{Broken, Line, STEP};

/// Receives sessions and bindings.
pub(crate) trait Taker {
    /// These are its own now.
    fn receive(&self, sessions: Vec<MovingSession<OwnedFd>>);

    /// These too.
    fn receive_bindings(&self, bindings: Vec<MovingBinding>);
}

/// An offer that was not settled yet.
enum Offer {
    Sessions(Vec<MovingSession<OwnedFd>>),
    Bindings(Vec<MovingBinding>),
}

/// Says that somebody is there to take over.
///
/// # Errors
/// The other side has gone.
pub(crate) fn greet(line: &Line) -> Result<(), Broken> {
    let hello = Frame::Hello {
        lowest: VERSION,
        highest: VERSION,
    };
    line.send(&hello, &[], STEP)
}

/// Takes all that the process at the other end of the line has, after [`greet`]; says how many sessions that was.
///
/// # Errors
/// It broke off; what was taken by then stays taken, and the other side has the rest.
pub(crate) fn take(line: &mut Line, taker: &impl Taker) -> Result<usize, Broken> {
    line.receive(STEP, |frame, _| match frame {
        Frame::Welcome { version: VERSION } => Ok(()),
        Frame::Welcome { .. } => Err(Broken::Version),
        _ => Err(Broken::Unexpected),
    })?;
    let mut count = 0;
    while let Some((number, offer)) = line.receive(STEP, offered)? {
        line.send(&Frame::Received { number }, &[], STEP)?;
        settle(line, number)?;
        match offer {
            Offer::Sessions(sessions) => {
                count += sessions.len();
                taker.receive(sessions);
            }
            Offer::Bindings(bindings) => taker.receive_bindings(bindings),
        }
    }
    Ok(count)
}

/// Takes an offer apart; nothing at the end.
fn offered(frame: Frame<'_>, handles: &mut Vec<OwnedFd>) -> Result<Option<(u32, Offer)>, Broken> {
    match frame {
        Frame::Sessions { number, sessions } => {
            let handles = std::mem::take(handles);
            if handles.len() != sessions.len() {
                return Err(Broken::Descriptors);
            }
            let sessions = sessions.iter().zip(handles).map(|(record, handle)| {
                // Whatever else may go wrong, a session never gets the label of another one.
                if record.mark != socket::cookie(&handle).unwrap_or(0) {
                    return Err(Broken::Descriptors);
                }
                Ok(MovingSession {
                    handle,
                    label: record.label.into(),
                    property: record.property.into(),
                    left: record.left,
                })
            });
            let sessions = sessions.collect::<Result<_, _>>()?;
            Ok(Some((number, Offer::Sessions(sessions))))
        }
        Frame::Bindings { number, bindings } => {
            let bindings = bindings.iter().map(|record| MovingBinding {
                label: record.label.into(),
                property: record.property.into(),
                endpoint: record.endpoint.into(),
                left: record.left,
            });
            Ok(Some((number, Offer::Bindings(bindings.collect()))))
        }
        Frame::End => Ok(None),
        _ => Err(Broken::Unexpected),
    }
}

/// Waits for the word that makes the offer ours.
///
/// When it is late it is made sure that it cannot come any more; only then is the offer not ours.
fn settle(line: &mut Line, number: u32) -> Result<(), Broken> {
    let look = |frame: Frame<'_>, _: &mut Vec<OwnedFd>| match frame {
        Frame::Commit { number: settled } if settled == number => Ok(()),
        _ => Err(Broken::Unexpected),
    };
    match line.receive(STEP, look) {
        Err(Broken::Late) => {
            line.finish_receiving();
            line.receive(Duration::ZERO, look)
        }
        settled => settled,
    }
}
