//! What running services say of themselves, read from where they hand out their metrics, for whoever looks at a terminal.
//!
//! [`text`] understands a page, [`read`] asks for one, [`view`] makes of one page, or of two that were read one after the
//! other, what a person wants to know, and [`screen`] draws that. Only [`read`] touches anything outside the process.

pub(crate) mod read;
pub(crate) mod screen;
pub(crate) mod text;
pub(crate) mod view;
