//! GPU units: one measure over all models, so that a pool of different devices has one capacity.
//!
//! An A100 has 20 units. A model's units are `20 × √(F/312 · B/2039)`, with F its dense 16-bit tensor throughput in TFLOP/s, which
//! bounds prefill, and B its memory bandwidth in GB/s, which bounds decode; 312 and 2039 are those of an A100 of 80 GB. Figures: the
//! vendor's data sheets. A MIG instance has a seventh of the units for each of
//! its compute slices.

/// Units of a device whose model nobody knows: those of the measure itself.
const UNKNOWN: f64 = 20.0;

/// Part of the product name, TFLOP/s, GB/s. The first that fits counts, so the longer name comes first.
const MODELS: [(&str, f64, f64); 19] = [
    ("GB200", 2500.0, 8000.0),
    ("B200", 2250.0, 8000.0),
    ("H200 NVL", 836.0, 4800.0),
    ("H200", 989.0, 4800.0),
    ("GH200", 989.0, 4000.0),
    ("H100 PCIe", 756.0, 2000.0),
    ("H100 NVL", 836.0, 3900.0),
    ("H100", 989.0, 3350.0),
    ("H20", 148.0, 4000.0),
    ("A100-PCIE-40GB", 312.0, 1555.0),
    ("A100-SXM4-40GB", 312.0, 1555.0),
    ("A100", 312.0, 2039.0),
    ("L40S", 362.0, 864.0),
    ("L40", 181.0, 864.0),
    ("A40", 150.0, 696.0),
    ("A30", 165.0, 933.0),
    ("A10", 125.0, 600.0),
    ("L4", 121.0, 300.0),
    ("T4", 65.0, 320.0),
];

/// Units of a whole device of that product name.
pub(super) fn of_model(name: &str) -> f64 {
    let model = MODELS.iter().find(|(model, ..)| name.split(['/', ',']).any(|part| names(part, model)));
    let whole = model.map_or(UNKNOWN, |(_, tflops, gigabytes)| 20.0 * (tflops / 312.0 * gigabytes / 2039.0).sqrt());
    whole * slices(name).map_or(1.0, |slices| slices / 7.0)
}

/// Compute slices of a MIG instance, whose name ends like `MIG 3g.71gb`; `None` for a whole device.
fn slices(name: &str) -> Option<f64> {
    let (_, profile) = name.rsplit_once("MIG ")?;
    let slices: f64 = profile.split('g').next()?.rsplit('c').next()?.trim_start_matches('.').parse().ok()?;
    (1.0..=7.0).contains(&slices).then_some(slices)
}

/// Whether `name` has `model` as a word: an `L4` is no `L40`.
fn names(name: &str, model: &str) -> bool {
    name.match_indices(model).any(|(at, _)| {
        let end = |byte: Option<&u8>| byte.is_none_or(|byte| !byte.is_ascii_alphanumeric());
        end(at.checked_sub(1).and_then(|before| name.as_bytes().get(before))) && end(name.as_bytes().get(at + model.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_a100_are_forty_units_and_faster_models_are_more() {
        assert_eq!((2.0 * of_model("NVIDIA A100-SXM4-80GB")).round(), 40.0);
        assert_eq!(of_model("NVIDIA H200").round(), 55.0);
        assert_eq!(of_model("NVIDIA H100 80GB HBM3").round(), 46.0);
        assert_eq!(of_model("NVIDIA L40S").round(), 14.0);
        assert_eq!(of_model("NVIDIA L4").round(), 5.0);
        assert_eq!(of_model("Something New"), 20.0);
        assert_eq!((7.0 * of_model("NVIDIA A100-SXM4-80GB MIG 3g.40gb")).round(), 60.0);
        assert_eq!((7.0 * of_model("NVIDIA A100-SXM4-80GB MIG 1c.2g.20gb")).round(), 40.0);
    }
}
