//! A row's hash, and the part that a hash puts it in.
//!
//! Both are part of what is written to disk and compared between data sets: they never change. Strings are hashed with
//! their length before them, so that no two rows share their bytes. Labels are hashed by name, not by index: the order
//! in which classes are declared does not matter, and neither do groups.

use sha2::{Digest, Sha256};

use super::{Content, Split};

/// Returns the SHA-256 of content and label; `labels` are class names, `None` without a label column.
pub(super) fn row(content: &Content, labels: Option<&[String]>) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"evenkeel row 1\0");
    match content {
        Content::Text(text) => {
            hash.update([0]);
            string(&mut hash, text);
        }
        Content::Completion { prompt, completion } => {
            hash.update([1]);
            string(&mut hash, prompt);
            string(&mut hash, completion);
        }
        Content::Messages(messages) => {
            hash.update([2]);
            hash.update((messages.len() as u64).to_le_bytes());
            for message in messages {
                string(&mut hash, &message.role);
                string(&mut hash, &message.content);
            }
        }
        Content::Image(bytes) => {
            hash.update([3]);
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        }
    }
    if let Some(labels) = labels {
        let mut sorted: Vec<_> = labels.iter().collect();
        sorted.sort();
        hash.update([1]);
        hash.update((sorted.len() as u64).to_le_bytes());
        for label in sorted {
            string(&mut hash, label);
        }
    }
    hash.finalize().into()
}

fn string(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text);
}

/// Puts what stays together (`key`: a grouping value or a row's hash) into a part.
pub(super) fn split(key: &[u8], seed: u64, validation: f64, test: f64) -> Split {
    let mut hash = Sha256::new();
    hash.update(b"evenkeel split 1\0");
    hash.update(seed.to_le_bytes());
    hash.update(key);
    let digest: [u8; 32] = hash.finalize().into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    // 53 bits are what an f64 holds: uniform in 0 to below 1.
    let uniform = (u64::from_le_bytes(first) >> 11) as f64 / (1_u64 << 53) as f64;
    if uniform < test {
        Split::Test
    } else if uniform < test + validation {
        Split::Validation
    } else {
        Split::Train
    }
}

/// Returns the SHA-256 of a part: its rows' hashes in ascending order, so that the order of the file does not matter.
pub(super) fn part(mut hashes: Vec<[u8; 32]>) -> String {
    hashes.sort_unstable();
    let mut hash = Sha256::new();
    for row in hashes {
        hash.update(row);
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_has_another_hash() {
        let text = |text: &str| Content::Text(text.into());
        let pair = |prompt: &str, completion: &str| Content::Completion {
            prompt: prompt.into(),
            completion: completion.into(),
        };
        let yes = ["yes".to_owned()];
        let hashes = [
            row(&text("ab"), None),
            row(&text("ab"), Some(&[])),
            row(&text("ab"), Some(&yes)),
            row(&pair("a", "b"), None),
            row(&pair("ab", ""), None),
            row(&Content::Messages(Vec::new()), None),
        ];
        for (i, a) in hashes.iter().enumerate() {
            assert!(hashes[..i].iter().all(|b| a != b), "{i}");
        }
        let (a, b) = (["x".to_owned(), "y".to_owned()], ["y".to_owned(), "x".to_owned()]);
        assert_eq!(row(&text("ab"), Some(&a)), row(&text("ab"), Some(&b)));
    }

    /// Written to disks: a change of this value is a change of every data set.
    #[test]
    fn the_hash_of_a_row_is_what_it_was() {
        let expected = "bf2307986c38ed854fde9f5570057558d836a60069b50b886afbba6d135c207d";
        assert_eq!(hex::encode(row(&Content::Text("a".into()), Some(&["b".to_owned()]))), expected);
    }

    #[test]
    fn fractions_are_met_and_seeds_differ() {
        let parts = |seed| (0..10_000_u32).map(|i| split(&i.to_le_bytes(), seed, 0.2, 0.1)).collect::<Vec<_>>();
        let (one, two) = (parts(1), parts(2));
        assert_ne!(one, two);
        for parts in [one, two] {
            let count = |split| parts.iter().filter(|part| **part == split).count();
            // Five standard deviations: 5·√(10⁴·0.2·0.8) = 200 and 5·√(10⁴·0.1·0.9) = 150.
            assert!(count(Split::Validation).abs_diff(2000) < 200);
            assert!(count(Split::Test).abs_diff(1000) < 150);
        }
        assert!((0..100_u32).all(|i| split(&i.to_le_bytes(), 7, 0.0, 0.0) == Split::Train));
        assert!((0..100_u32).all(|i| split(&i.to_le_bytes(), 7, 0.0, 1.0) == Split::Test));
    }
}
