//! `postkeep top`: what the services do, while they do it.
#![allow(
    clippy::doc_markdown,
    reason = "documentation comments are the help texts"
)]

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use postkeep_sys::error_text;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::terminal;
use ratatui::{DefaultTerminal, Frame};

use super::status::{Watched, look, wall_clock};
use super::{Answer, finish};
use crate::monitor::read::Reading;
use crate::monitor::screen::{Choice, Order, draw, plain};
use crate::monitor::view::View;

const KEYS: &str =
    "q quit  space pause  r by requests  s by slowness  e by errors  n by name  ↑↓ scroll";

/// Options of `postkeep top`.
#[derive(Args, Debug)]
#[command(after_help = "\
Keys: q ends it, space pauses, r, s, e and n sort tables by requests, slowness, errors and name, arrows scroll.\n\
Times of requests: \"at once\" are those that did not have to wait for a thread, a file or a server.")]
pub(crate) struct Options {
    #[command(flatten)]
    watched: Watched,
    /// Seconds between two looks
    #[arg(long, short, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Print one picture as text and end
    #[arg(long)]
    once: bool,
    /// With --once: print JSON
    #[arg(long, requires = "once")]
    json: bool,
    /// By what tables are sorted
    #[arg(long, value_name = "ORDER", default_value = "rate")]
    sort: Order,
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> ExitCode {
    finish(if options.once {
        once(options)
    } else {
        live(options)
    })
}

fn once(options: &Options) -> Result<Answer, String> {
    let view = look(&options.watched, Duration::from_secs(options.interval))?;
    let text = if options.json {
        format!("{:#}\n", view.to_json())
    } else {
        // In a terminal, what it has room for; elsewhere, room for long names.
        let width = terminal::size()
            .ok()
            .filter(|_| io::stdout().is_terminal())
            .map_or(120, |(width, _)| width.max(80));
        plain(&view, options.sort, width)
    };
    // Whoever closed the pipe has seen enough.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(Answer::Yes)
}

fn live(options: &Options) -> Result<Answer, String> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(
            "this needs a terminal; --once prints one picture, --once --json for scripts"
                .to_owned(),
        );
    }
    let first = options.watched.read()?;
    let mut terminal =
        ratatui::try_init().map_err(|error| format!("terminal: {}", error_text(&error)))?;
    let ended = Screen {
        options,
        view: View::new(&[], &first, wall_clock()),
        before: first,
        trouble: None,
        choice: Choice {
            order: options.sort,
            ..Choice::default()
        },
    }
    .run(&mut terminal);
    ratatui::restore();
    ended.map_err(|error| format!("terminal: {}", error_text(&error)))?;
    Ok(Answer::Yes)
}

/// What is shown.
struct Screen<'a> {
    options: &'a Options,
    before: Vec<Reading>,
    view: View,
    /// Why nothing could be read.
    trouble: Option<String>,
    choice: Choice,
}

impl Screen<'_> {
    fn run(&mut self, terminal: &mut DefaultTerminal) -> io::Result<()> {
        let interval = Duration::from_secs(self.options.interval);
        // The first picture shows all the time since the services began; the next one comes soon.
        let mut due = Instant::now() + Duration::from_secs(1);
        loop {
            terminal.draw(|frame| self.draw(frame))?;
            let patience = due.saturating_duration_since(Instant::now());
            if event::poll(patience)?
                && let Event::Key(key) = event::read()?
                && key.kind != KeyEventKind::Release
                && !press(key, &mut self.choice)
            {
                return Ok(());
            }
            if Instant::now() < due {
                continue;
            }
            due = Instant::now() + interval;
            if self.choice.paused {
                continue;
            }
            match self.options.watched.read() {
                Ok(after) => {
                    self.view = View::new(&self.before, &after, wall_clock());
                    self.before = after;
                    self.trouble = None;
                }
                Err(reason) => self.trouble = Some(reason),
            }
        }
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let last = self.trouble.as_deref().unwrap_or(KEYS);
        draw(
            &self.view,
            self.choice,
            last,
            frame.area(),
            frame.buffer_mut(),
        );
    }
}

/// Whether to go on.
fn press(key: KeyEvent, choice: &mut Choice) -> bool {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if control => return false,
        KeyCode::Char(' ') => choice.paused = !choice.paused,
        KeyCode::Char('r') => choice.order = Order::Rate,
        KeyCode::Char('s') => choice.order = Order::Slow,
        KeyCode::Char('e') => choice.order = Order::Errors,
        KeyCode::Char('n') => choice.order = Order::Name,
        KeyCode::Up => choice.skipped = choice.skipped.saturating_sub(1),
        KeyCode::Down => choice.skipped = choice.skipped.saturating_add(1),
        KeyCode::PageUp => choice.skipped = choice.skipped.saturating_sub(10),
        KeyCode::PageDown => choice.skipped = choice.skipped.saturating_add(10),
        KeyCode::Home => choice.skipped = 0,
        _ => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_change_what_is_shown() {
        let mut choice = Choice::default();
        let mut type_in = |code, modifiers| press(KeyEvent::new(code, modifiers), &mut choice);
        let none = KeyModifiers::NONE;
        assert!(type_in(KeyCode::Char('s'), none));
        assert!(type_in(KeyCode::Down, none));
        assert!(type_in(KeyCode::Char(' '), none));
        assert!(type_in(KeyCode::Char('c'), none));
        assert!(!type_in(KeyCode::Char('q'), none));
        assert!(!type_in(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert_eq!(
            choice,
            Choice {
                order: Order::Slow,
                paused: true,
                skipped: 1
            }
        );
    }
}
