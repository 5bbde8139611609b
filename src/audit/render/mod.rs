//! Writes a report for people: one HTML page, Markdown, CSV.
//!
//! Pure: no clock, no file, no network; the same report gives the same bytes. Computes no statistics: what is shown
//! stands in the report, and what is not there is shown as not there, with its reason, never as 0.

mod csv;
mod definitions;
mod escape;
mod html;
mod markdown;
mod pick;
mod plots;
mod tables;
mod words;

pub use csv::csv;
pub use html::html;
pub use markdown::markdown;

#[cfg(test)]
pub(super) mod sample;
#[cfg(test)]
mod tests;
