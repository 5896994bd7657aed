//! What a worker sees of a request: headers and a verified identity, made once for each tenant and class.

use headgate_core::policy::Policy;

use super::policy::{MAX_TENANTS, spiffe_id};
use crate::controller::Arrival;
use crate::setup::Setup;

/// The faces of the clients.
pub(super) struct Faces {
    spiffe: Vec<String>,
    classes: Vec<String>,
    priority_header: String,
}

/// Decimal digits of a number, without an allocation.
struct Digits {
    bytes: [u8; 20],
    from: usize,
}

// === impl Faces ===

impl Faces {
    pub(super) fn new(setup: &Setup, policy: &Policy) -> Self {
        Self {
            spiffe: (0..MAX_TENANTS).map(spiffe_id).collect(),
            classes: setup.classes.iter().map(|class| class.name.clone()).collect(),
            priority_header: policy.classification().priority_header.clone(),
        }
    }

    /// Calls `then` with the headers and the certificate of a request.
    pub(super) fn with_headers<R>(&self, arrival: &Arrival, then: impl FnOnce(&[(&[u8], &[u8])], Option<&[u8]>) -> R) -> R {
        let (length, attempt) = (Digits::of(arrival.content_length), Digits::of(u64::from(arrival.attempt)));
        let class = self.classes.get(usize::from(arrival.class)).map_or("", String::as_str);
        let headers: [(&[u8], &[u8]); 7] = [
            (b":method", b"POST"),
            (b":path", b"/v1/chat/completions"),
            (b":authority", b"llm.example"),
            (b"content-type", b"application/json"),
            (b"content-length", length.text()),
            (self.priority_header.as_bytes(), class.as_bytes()),
            // Only a retry carries the last one.
            (b"x-envoy-attempt-count", attempt.text()),
        ];
        let shown = if arrival.attempt > 1 { &headers[..] } else { &headers[..6] };
        then(shown, self.spiffe.get(arrival.tenant as usize).map(String::as_bytes))
    }
}

// === impl Digits ===

impl Digits {
    fn of(mut number: u64) -> Self {
        let mut digits = Self { bytes: [b'0'; 20], from: 20 };
        loop {
            digits.from -= 1;
            digits.bytes[digits.from] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return digits;
            }
        }
    }

    fn text(&self) -> &[u8] {
        &self.bytes[self.from..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_of_the_number() {
        for number in [0, 7, 10, 4096, u64::MAX] {
            assert_eq!(Digits::of(number).text(), number.to_string().as_bytes());
        }
    }
}
