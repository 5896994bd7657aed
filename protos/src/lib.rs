//! The wire contract of Headgate.
//!
//! `headgate/v1/*.proto` holds our own messages; `discovery/*.proto` the few messages of Envoy's public discovery API that the
//! filter and the discovery service speak; `etcd/etcd.proto` what the control plane speaks with etcd. The generated code in `src/gen` is checked in, so building needs no `protoc`;
//! `tests/bootstrap.rs` generates it anew and fails on a difference.
#![cfg_attr(not(feature = "grpc"), no_std)]

extern crate alloc;

mod any;
#[cfg(feature = "document")]
pub mod document;
mod histogram;
#[cfg(feature = "document")]
pub mod plugin;

pub use any::Any;
pub use histogram::{Buckets, Histogram, HistogramWriter, Run};

// The generated code names other packages by relative paths, so the modules nest as the packages do.
#[allow(clippy::all, clippy::pedantic, clippy::restriction, missing_docs, rustdoc::all, unreachable_pub)]
mod generated {
    pub mod headgate {
        pub mod v1 {
            pub use crate::Histogram;
            include!("gen/headgate.v1.rs");
        }
    }
    pub mod google {
        pub mod rpc {
            include!("gen/google.rpc.rs");
        }
    }
    #[cfg(feature = "grpc")]
    pub mod etcdserverpb {
        include!("gen/etcdserverpb.rs");
    }
    pub mod envoy {
        pub mod config {
            pub mod core {
                pub mod v3 {
                    include!("gen/envoy.config.core.v3.rs");
                }
            }
        }
        pub mod service {
            pub mod discovery {
                pub mod v3 {
                    include!("gen/envoy.service.discovery.v3.rs");
                }
            }
            #[cfg(feature = "grpc")]
            pub mod cluster {
                pub mod v3 {
                    include!("gen/envoy.service.cluster.v3.rs");
                }
            }
            #[cfg(feature = "grpc")]
            pub mod endpoint {
                pub mod v3 {
                    include!("gen/envoy.service.endpoint.v3.rs");
                }
            }
            #[cfg(feature = "grpc")]
            pub mod listener {
                pub mod v3 {
                    include!("gen/envoy.service.listener.v3.rs");
                }
            }
            #[cfg(feature = "grpc")]
            pub mod route {
                pub mod v3 {
                    include!("gen/envoy.service.route.v3.rs");
                }
            }
            #[cfg(feature = "grpc")]
            pub mod runtime {
                pub mod v3 {
                    include!("gen/envoy.service.runtime.v3.rs");
                }
            }
            #[cfg(feature = "grpc")]
            pub mod extension {
                pub mod v3 {
                    include!("gen/envoy.service.extension.v3.rs");
                }
            }
        }
    }
}

/// `envoy.config.core.v3`, as far as we speak it.
pub use generated::envoy::config::core::v3 as envoy_core;
/// `envoy.service.cluster.v3`: discovery of clusters.
#[cfg(feature = "grpc")]
pub use generated::envoy::service::cluster::v3 as cluster;
/// `envoy.service.discovery.v3`, as far as we speak it.
pub use generated::envoy::service::discovery::v3 as discovery;
/// `envoy.service.endpoint.v3`: discovery of endpoints.
#[cfg(feature = "grpc")]
pub use generated::envoy::service::endpoint::v3 as endpoint;
/// `envoy.service.extension.v3`: extension configuration discovery.
#[cfg(feature = "grpc")]
pub use generated::envoy::service::extension::v3 as extension;
/// `envoy.service.listener.v3`: discovery of listeners.
#[cfg(feature = "grpc")]
pub use generated::envoy::service::listener::v3 as listener;
/// `envoy.service.route.v3`: discovery of routes.
#[cfg(feature = "grpc")]
pub use generated::envoy::service::route::v3 as route;
/// `envoy.service.runtime.v3`: discovery of runtime layers.
#[cfg(feature = "grpc")]
pub use generated::envoy::service::runtime::v3 as runtime;
/// etcd's v3 API, as far as we speak it.
#[cfg(feature = "grpc")]
pub use generated::etcdserverpb as etcd;
/// `google.rpc`.
pub use generated::google::rpc;
/// `headgate.v1`: policies, limits, load reports.
pub use generated::headgate::v1;

/// Everything the gRPC reflection service needs to describe our API.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptor.bin");

/// Type URL of the xDS resource [`v1::Policy`].
pub const POLICY_TYPE_URL: &str = "type.googleapis.com/headgate.v1.Policy";
/// Type URL of the xDS resource [`v1::Limits`].
pub const LIMITS_TYPE_URL: &str = "type.googleapis.com/headgate.v1.Limits";
