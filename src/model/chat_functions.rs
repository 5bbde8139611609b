//! Functions of chat templates as transformers has them: `tojson` and `strftime_now`.
//!
//! Holds no template and reads no clock of its own.

use std::time::{Duration, SystemTime};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// Deepest nesting that `tojson` writes.
const MAX_DEPTH: usize = 64;

/// Writes a value as Python's `json.dumps(ensure_ascii=False)` does: `, ` and `: ` between parts, nothing escaped for
/// HTML; `indent` puts each part on a line.
pub(super) fn to_json(value: &Value, options: &Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Accepted for templates that give them: neither changes the text here.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(&mut out, value, indent.map(|width| width.min(16)), 0)?;
    Ok(out)
}

fn write_json(out: &mut String, value: &Value, indent: Option<usize>, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value is nested too deep"));
    }
    let fault = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
    let line = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let is_map = value.kind() == ValueKind::Map;
    if !is_map && !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        out.push_str(&serde_json::to_string(value).map_err(fault)?);
        return Ok(());
    }
    out.push(if is_map { '{' } else { '[' });
    let mut any = false;
    for item in value.try_iter()? {
        if any {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        any = true;
        line(out, depth + 1);
        if is_map {
            out.push_str(&serde_json::to_string(&item.to_string()).map_err(fault)?);
            out.push_str(": ");
            write_json(out, &value.get_item(&item)?, indent, depth + 1)?;
        } else {
            write_json(out, &item, indent, depth + 1)?;
        }
    }
    if any {
        line(out, depth);
    }
    out.push(if is_map { '}' } else { ']' });
    Ok(())
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats a time in UTC by the common letters of C's `strftime`.
pub(super) fn strftime_now(format: &str, now: SystemTime) -> Result<String, Error> {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day, of_year) = date(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    let month_name = MONTHS.get(month as usize - 1).copied().unwrap_or_default();
    let day_name = DAYS.get((days % 7) as usize).copied().unwrap_or_default();
    let short = |name: &str| name.get(..3).unwrap_or_default().to_owned();
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut letter = chars.next();
        let unpadded = letter == Some('-');
        if unpadded {
            letter = chars.next();
        }
        let number = |value: u64, width: usize| if unpadded { value.to_string() } else { format!("{value:0width$}") };
        out.push_str(&match letter {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('j') => number(of_year, 3),
            Some('H') => number(hour, 2),
            Some('I') => number((hour + 11) % 12 + 1, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b') => short(month_name),
            Some('A') => day_name.to_owned(),
            Some('a') => short(day_name),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let fault = format!("strftime_now: `%{}` is not known", other.map(String::from).unwrap_or_default());
                return Err(Error::new(ErrorKind::InvalidOperation, fault));
            }
        });
    }
    Ok(out)
}

/// Returns year, month, day and day of the year of a day counted from 1970-01-01.
fn date(mut days: u64) -> (u64, u64, u64, u64) {
    let leap = |year: u64| (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400);
    // 400 years have 146097 days.
    let mut year = 1970 + days / 146_097 * 400;
    days %= 146_097;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let of_year = days + 1;
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1, of_year)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let format = "%A %-d %b %Y %H:%M:%S %j %y";
        assert_eq!(strftime_now(format, at(0)).unwrap(), "Thursday 1 Jan 1970 00:00:00 001 70");
        assert_eq!(strftime_now(format, at(951_827_696)).unwrap(), "Tuesday 29 Feb 2000 12:34:56 060 00");
        assert_eq!(strftime_now("%d %B %Y, %I %p%%", at(1_735_689_599)).unwrap(), "31 December 2024, 11 PM%");
        assert!(strftime_now("%Q", at(0)).is_err());
        assert!(strftime_now("%", at(0)).is_err());
    }
}
