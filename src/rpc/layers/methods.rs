//! The methods this server has, from its descriptors: the bound of what may become a metric's label.

use std::collections::HashMap;

use prost::Message as _;
use prost_types::FileDescriptorSet;

/// Labels of a method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Labels {
    /// `unary`, `client_stream`, `server_stream` or `bidi_stream`.
    pub(super) kind: &'static str,
    /// Full name of the service, or `unknown`.
    pub(super) service: String,
    /// Name of the method, or `unknown`.
    pub(super) method: String,
    /// Whether it changes what is kept.
    pub(super) changes: bool,
}

/// How methods begin that change something, after AIP-130 and what we call the others.
const CHANGES: [&str; 9] = ["Cancel", "Create", "Delete", "Load", "Resume", "Set", "Unload", "Update", "Upload"];

/// All methods by their path.
#[derive(Debug)]
pub struct Methods {
    known: HashMap<String, Labels>,
    unknown: Labels,
}

impl Methods {
    /// Reads our own descriptors; those of health and reflection are added.
    pub fn from_descriptors(own: &[u8]) -> Self {
        let mut known = HashMap::new();
        let reflection =
            [tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET, tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET];
        for set in [own, tonic_health::pb::FILE_DESCRIPTOR_SET].into_iter().chain(reflection) {
            // Written by our build: what cannot be read would only count as unknown.
            let files = FileDescriptorSet::decode(set).unwrap_or_default();
            for file in files.file {
                let package = file.package().to_owned();
                for service in &file.service {
                    for method in &service.method {
                        let kind = match (method.client_streaming(), method.server_streaming()) {
                            (false, false) => "unary",
                            (true, false) => "client_stream",
                            (false, true) => "server_stream",
                            (true, true) => "bidi_stream",
                        };
                        let service = format!("{package}.{}", service.name());
                        let path = format!("/{service}/{}", method.name());
                        let changes = CHANGES.iter().any(|verb| method.name().starts_with(verb));
                        known.insert(path, Labels { kind, service, method: method.name().to_owned(), changes });
                    }
                }
            }
        }
        let (service, method) = ("unknown".to_owned(), "unknown".to_owned());
        let unknown = Labels { kind: "unary", service, method, changes: false };
        Self { known, unknown }
    }

    /// Returns the labels of a path; any that is not ours has the same.
    pub(super) fn labels(&self, path: &str) -> &Labels {
        self.known.get(path).unwrap_or(&self.unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::pb;

    #[test]
    fn known_methods_have_names_and_all_others_share_one() {
        let methods = Methods::from_descriptors(pb::FILE_DESCRIPTOR_SET);
        let stream = methods.labels("/evenkeel.v1.InferenceService/GenerateStream");
        assert_eq!((stream.kind, stream.method.as_str()), ("server_stream", "GenerateStream"));
        assert_eq!(methods.labels("/evenkeel.v1.AdapterService/UploadAdapter").kind, "client_stream");
        assert_eq!(methods.labels("/grpc.health.v1.Health/Check").service, "grpc.health.v1.Health");
        for (method, changes) in [
            ("AdapterService/UnloadAdapter", true),
            ("DatasetService/LoadDataset", true),
            ("JobService/CancelJob", true),
            ("AdapterService/DownloadAdapter", false),
            ("AuditService/CompareAudits", false),
            ("InferenceService/Generate", false),
            ("JobService/WatchJob", false),
        ] {
            assert_eq!(methods.labels(&format!("/evenkeel.v1.{method}")).changes, changes, "{method}");
        }
        assert_eq!(methods.labels("/a/b"), methods.labels("/evenkeel.v1.InferenceService/Nothing"));
    }
}
