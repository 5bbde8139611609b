//! A low-rank change of a linear layer, in f32, bf16 or 8 bits.
//!
//! In 8 bits a component (a row of A, and of Bᵀ) is whole numbers from -127 to 127 of the same worth, so that all that its
//! products need to know beside them is one number: the worth of A's times that of B's. Where this would take more than
//! [`LOSS`] of some row, as few numbers far above the others do, and where more than the matrices changes the layer, they
//! are bf16 instead. Multiplies nothing with activations.
//! candle has no i8: U8 tensors hold those bytes.

use candle_core::{DType, Device, Result, Tensor};

use super::piece::brought;

/// What may be lost of a row, in parts of its norm: Q8_0 takes half a percent of a weight, Q4_0 some seven.
const LOSS: f64 = 0.02;
/// The largest whole number.
const MOST: f32 = 127.0;

/// A low-rank change of a linear layer.
///
/// Stored transposed and scaled, in the order in which steps read it.
#[derive(Debug)]
pub struct LinearDelta {
    /// Aᵀ, `[input, r]`; whole numbers where they have a worth.
    pub a: Tensor,
    /// s·Bᵀ, `[r, output]`; whole numbers where they have a worth: `[⌈r/2⌉, output, 2]` then, two components beside each
    /// other, and zeros where one is missing.
    pub b: Tensor,
    /// What 1 of A times 1 of B is worth, `[r]`, where both are 8 bits.
    pub worth: Option<Tensor>,
    /// s times the bias of B, `[output]` (`lora_bias`).
    pub b_bias: Option<Tensor>,
    /// alpha/r or alpha/√r; already inside `b` and `b_bias`.
    pub scaling: f64,
    /// DoRA: m / ‖W + sBA‖ by output row, `[output]`; multiplies everything but the bias.
    pub magnitude: Option<Tensor>,
    /// Replaces the base layer's bias, `[output]` (`bias` = `all` or `lora_only`).
    pub bias: Option<Tensor>,
}

impl LinearDelta {
    /// Returns what low-rank matrices Aᵀ `[input, r]` and s·Bᵀ `[r, output]` do by themselves.
    pub fn new(a: Tensor, b: Tensor, scaling: f64) -> Self {
        Self { a, b, worth: None, b_bias: None, scaling, magnitude: None, bias: None }
    }

    /// Returns whether they are all that it does.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self { b_bias: None, magnitude: None, bias: None, .. })
    }

    /// Returns it with matrices of f32 in another number format, each in the order in which it lies; U8 stands for 8 bits
    /// where they are enough, else for bf16.
    pub(super) fn in_format(self, format: DType) -> Result<Self> {
        if format != DType::U8 {
            let a = self.a.t()?.to_dtype(format)?.t()?;
            return Ok(Self { a, b: self.b.to_dtype(format)?, ..self });
        }
        let a = if self.is_plain() { quantised(&self.a.t()?)? } else { None };
        let b = if a.is_some() { quantised(&self.b)? } else { None };
        if let (Some((a, of_a)), Some((b, of_b))) = (a, b) {
            let worth: Vec<f32> = of_a.iter().zip(of_b).map(|(a, b)| a * b).collect();
            if worth.iter().all(|worth| worth.is_finite()) {
                let worth = Some(Tensor::new(worth, &Device::Cpu)?);
                return Ok(Self { a: a.t()?, b: paired(&b)?, worth, ..self });
            }
        }
        self.in_format(DType::BF16)
    }

    /// Returns its matrices as f32 on a device.
    pub(super) fn matrices(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let Some(worth) = &self.worth else {
            let [a, b] = [&self.a, &self.b].map(|matrix| brought(matrix, device)?.to_dtype(DType::F32));
            return Ok((a?, b?));
        };
        let wide = |bytes: &Tensor| {
            let numbers = bytes.flatten_all()?.to_vec1::<u8>()?;
            let numbers = numbers.into_iter().map(|byte| f32::from(byte.cast_signed()));
            Tensor::from_vec(numbers.collect::<Vec<_>>(), bytes.shape(), &Device::Cpu)
        };
        let (pairs, output, _) = self.b.dims3()?;
        let b = wide(&self.b)?.transpose(1, 2)?.reshape((2 * pairs, output))?.narrow(0, 0, worth.dim(0)?)?;
        let b = b.broadcast_mul(&worth.unsqueeze(1)?)?;
        Ok((wide(&self.a)?.to_device(device)?, b.to_device(device)?))
    }
}

/// Puts two rows of `[r, n]` beside each other, number by number: `[⌈r/2⌉, n, 2]`.
fn paired(rows: &Tensor) -> Result<Tensor> {
    let (rank, count) = rows.dims2()?;
    rows.pad_with_zeros(0, 0, rank % 2)?.reshape((rank.div_ceil(2), 2, count))?.transpose(1, 2)?.contiguous()
}

/// Returns `[r, n]` in whole numbers with their worth in each row; none where too much would be lost.
fn quantised(rows: &Tensor) -> Result<Option<(Tensor, Vec<f32>)>> {
    let (mut bytes, mut worths) = (Vec::with_capacity(rows.elem_count()), Vec::new());
    for row in rows.to_vec2::<f32>()? {
        let worth = row.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / MOST;
        let (mut lost, mut all) = (0.0, 0.0);
        for x in &row {
            // In a row of zeros nothing is worth anything.
            let whole = if worth > 0.0 { (x / worth).round().clamp(-MOST, MOST) } else { 0.0 };
            bytes.push((whole as i8).cast_unsigned());
            lost += f64::from(x - whole * worth).powi(2);
            all += f64::from(*x).powi(2);
        }
        let is_near = lost <= LOSS * LOSS * all;
        if !is_near {
            return Ok(None);
        }
        worths.push(worth);
    }
    Ok(Some((Tensor::from_vec(bytes, rows.shape(), &Device::Cpu)?, worths)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(a: &[f32], b: &[f32]) -> LinearDelta {
        let rows = |numbers: &[f32]| Tensor::from_slice(numbers, (2, numbers.len() / 2), &Device::Cpu).unwrap();
        LinearDelta::new(rows(a).t().unwrap(), rows(b), 1.0)
    }

    fn flat(tensor: &Tensor) -> Vec<f32> {
        tensor.contiguous().unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_component_is_whole_numbers_and_their_worth() {
        // 1 is worth 0.01 in the first row of A and 2 in that of B, 0.5 and 0.1 in the second.
        let a = [0.01, -1.27, 0.5, 63.5, -0.5, 20.0];
        let b = [254.0, -2.0, 0.1, 12.7];
        let stored = delta(&a, &b).in_format(DType::U8).unwrap();
        assert_eq!((stored.a.dtype(), stored.b.dtype()), (DType::U8, DType::U8));
        let bytes = |tensor: &Tensor| tensor.contiguous().unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap();
        assert_eq!(bytes(&stored.a.t().unwrap()), [1, 129, 50, 127, 255, 40]);
        assert_eq!(bytes(&stored.b), [127, 1, 255, 127], "components beside each other");
        let (wide_a, wide_b) = stored.matrices(&Device::Cpu).unwrap();
        let (product, expected) = (wide_a.matmul(&wide_b).unwrap(), delta(&a, &b));
        let expected = expected.a.matmul(&expected.b).unwrap();
        for (got, expected) in flat(&product).iter().zip(flat(&expected)) {
            assert!((got - expected).abs() <= 1e-5 * expected.abs(), "{got}, {expected}");
        }
    }

    #[test]
    fn what_bytes_would_lose_is_bf16() {
        let even: Vec<f32> = (0..1000).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        assert!(delta(&even, &even).in_format(DType::U8).unwrap().worth.is_some());
        let with = |value: f32| {
            let mut row = even.clone();
            row[700] = value;
            row
        };
        // Forty times the others: all others are a handful of whole numbers.
        for row in [with(300.0), with(f32::INFINITY), with(f32::NAN)] {
            for pair in [delta(&row, &even), delta(&even, &row)] {
                let stored = pair.in_format(DType::U8).unwrap();
                assert!(stored.worth.is_none() && stored.a.dtype() == DType::BF16 && stored.b.dtype() == DType::BF16);
            }
        }
        let mut biased = delta(&even, &even);
        biased.b_bias = Some(Tensor::new(&[1_f32; 500], &Device::Cpu).unwrap());
        let biased = biased.in_format(DType::U8).unwrap();
        assert_eq!(biased.a.dtype(), DType::BF16);
        assert!(biased.a.t().unwrap().is_contiguous(), "A stays in its rows");
    }

    #[test]
    fn rows_of_zeros_stay() {
        let stored = delta(&[0.0, 0.0, 1.0, 0.5], &[3.0, -3.0, 0.0, 0.0]).in_format(DType::U8).unwrap();
        let (a, b) = stored.matrices(&Device::Cpu).unwrap();
        assert!(flat(&a.matmul(&b).unwrap()).iter().all(|x| *x == 0.0));
    }
}
