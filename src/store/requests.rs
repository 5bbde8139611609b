//! Repeated calls: the first answer to a request id is kept with the change, in one transaction, and given again.
//!
//! Knows nothing of what is asked or answered, beyond that an answer can be written as JSON.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Catalog, RequestRow, Store, StoreError};

/// How long the answer to a request id is kept.
const REMEMBERED: Duration = Duration::from_secs(24 * 60 * 60);

/// Makes a repeated call harmless: the first answer is kept with the change, in one transaction, for 24 hours.
#[derive(Debug, Clone)]
pub struct RequestKey {
    /// The method, for example `SetAlias`.
    pub method: &'static str,
    /// The caller's id.
    pub id: String,
    /// SHA-256 of the request's content.
    pub fingerprint: [u8; 32],
}

/// The request id was used for another request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("request_id `{0}` was used for another request")]
pub struct RequestIdReused(pub String);

impl Store {
    /// Runs `change` and keeps its answer in one transaction, or returns the first answer to this request id.
    ///
    /// # Errors
    /// What `change` returns; [`RequestIdReused`]; when the database fails.
    pub fn change_once<T, E>(
        &self,
        request: Option<&RequestKey>,
        change: impl FnOnce(&Catalog<'_>) -> Result<T, E>,
    ) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: From<StoreError> + From<RequestIdReused>,
    {
        self.change(|catalog| {
            if let Some(first) = catalog.answered::<T, E>(request)? {
                return Ok(first);
            }
            let answer = change(catalog)?;
            if let Some(key) = request {
                let response = serde_json::to_string(&answer).map_err(unwritable)?;
                let row = RequestRow { fingerprint: key.fingerprint, response };
                catalog.put_request((key.method, &key.id), &row, now(), since())?;
            }
            Ok(answer)
        })
    }
}

impl Catalog<'_> {
    /// Returns the first answer to a request id, if it was given in the last 24 hours.
    ///
    /// # Errors
    /// [`RequestIdReused`]; when the database fails or the answer is damaged.
    pub fn answered<T, E>(&self, request: Option<&RequestKey>) -> Result<Option<T>, E>
    where
        T: DeserializeOwned,
        E: From<StoreError> + From<RequestIdReused>,
    {
        let Some(key) = request else { return Ok(None) };
        let Some(row) = self.request(key.method, &key.id, since())? else { return Ok(None) };
        if row.fingerprint != key.fingerprint {
            return Err(RequestIdReused(key.id.clone()).into());
        }
        let corrupt = |_| StoreError::Corrupt(format!("the answer to request `{}`", key.id));
        Ok(Some(serde_json::from_str(&row.response).map_err(corrupt)?))
    }
}

/// What is said of a value that cannot be written as JSON.
pub fn unwritable(error: serde_json::Error) -> StoreError {
    StoreError::Io { path: "evenkeel.db".into(), source: error.into() }
}

/// Microseconds since 1970.
pub fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX)
}

fn since() -> i64 {
    now() - i64::try_from(REMEMBERED.as_micros()).unwrap_or(i64::MAX)
}
