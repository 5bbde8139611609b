//! Results on their way, as bytes and back.
//!
//! A line that names the form, the digest of the run, then for each model the number of results and each with its length,
//! all as 8 bytes, little end first; at the end the SHA-256 of all before. Values keep every bit. Reads hostile bytes.

use sha2::{Digest, Sha256};

use super::super::AuditError;

const FORM: &[u8] = b"evenkeel scores 1\n";
const DIGEST: usize = 32;

/// Writes results `[models][units]` of a run.
pub(super) fn write(run: &[u8; DIGEST], results: &[Vec<Vec<f64>>]) -> Vec<u8> {
    let mut bytes = [FORM, run.as_slice()].concat();
    for units in results {
        bytes.extend((units.len() as u64).to_le_bytes());
        for values in units {
            bytes.extend((values.len() as u64).to_le_bytes());
            values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        }
    }
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    bytes
}

/// Reads results of a run over `units` units with `models` models.
///
/// # Errors
/// [`AuditError::Checkpoint`].
pub(super) fn read(
    bytes: &[u8],
    run: &[u8; DIGEST],
    (models, units): (usize, usize),
) -> Result<Vec<Vec<Vec<f64>>>, AuditError> {
    let fault = |what: &str| AuditError::Checkpoint(what.to_owned());
    let (body, digest) = bytes.split_last_chunk::<DIGEST>().ok_or_else(|| fault("is too short"))?;
    if Sha256::digest(body).as_slice() != digest {
        return Err(fault("is damaged"));
    }
    let body = body.strip_prefix(FORM).ok_or_else(|| fault("is of another form"))?;
    let mut body = body.strip_prefix(run.as_slice()).ok_or_else(|| fault("is of another audit"))?;
    let mut number = || {
        let (first, rest) = body.split_first_chunk::<8>()?;
        body = rest;
        Some(u64::from_le_bytes(*first))
    };
    let mut results = Vec::with_capacity(models);
    for _ in 0..models {
        let count = number().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= units);
        let count = count.ok_or_else(|| fault("has too many results"))?;
        // Models are scored one after the other.
        if count > 0 && results.last().is_some_and(|before: &Vec<Vec<f64>>| before.len() < units) {
            return Err(fault("has results out of their order"));
        }
        let mut of_model = Vec::with_capacity(count);
        for _ in 0..count {
            let length = number().ok_or_else(|| fault("ends early"))?;
            let values = (0..length).map_while(|_| number().map(f64::from_bits));
            let values: Vec<f64> = values.collect();
            if values.len() as u64 != length {
                return Err(fault("ends early"));
            }
            of_model.push(values);
        }
        results.push(of_model);
    }
    if body.is_empty() { Ok(results) } else { Err(fault("goes on too long")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RUN: [u8; DIGEST] = [7; DIGEST];

    fn sealed(body: &[u8]) -> Vec<u8> {
        [body, Sha256::digest(body).as_slice()].concat()
    }

    #[test]
    fn what_is_written_is_read_with_every_bit() {
        let results = vec![vec![vec![1.5, f64::NAN], vec![]], vec![vec![-0.0]], vec![]];
        let bytes = write(&RUN, &results);
        let back = read(&bytes, &RUN, (3, 2)).unwrap();
        assert_eq!(write(&RUN, &back), bytes);
        assert!(back[0][0][1].is_nan() && back[1][0][0].is_sign_negative());
    }

    #[test]
    fn what_is_not_of_this_run_is_refused() {
        let bytes = write(&RUN, &[vec![vec![1.0]], vec![]]);
        for (run, shape) in [([8; DIGEST], (2, 1)), (RUN, (1, 1)), (RUN, (3, 1)), (RUN, (2, 0))] {
            let error = read(&bytes, &run, shape).unwrap_err();
            assert!(matches!(error, AuditError::Checkpoint(_)), "{error}");
        }
        let gap = write(&RUN, &[vec![vec![1.0]], vec![vec![1.0]]]);
        read(&gap, &RUN, (2, 2)).unwrap_err();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            read(&damaged, &RUN, (2, 1)).unwrap_err();
            read(&bytes[..at], &RUN, (2, 1)).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..80), models in 0..4_usize) {
            drop(read(&tail, &RUN, (models, 3)));
            drop(read(&sealed(&[FORM, &RUN, &tail].concat()), &RUN, (models, 3)));
        }
    }
}
