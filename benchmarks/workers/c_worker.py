"""C: Tsitouras's method with the default step-size control, written out for one equation.

The program is made from the package's table of coefficients and compiled with `-O3`. It takes the
same decisions as `keras_neuralde` does, one trajectory after the other on one core, so that its
time says what the work costs without vectors, without threads and without a general loop.
"""

import ctypes
import os
import pathlib
import subprocess
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.workers.serve import Program, agree, serve
from keras_neuralde import solvers

_FIELDS = {
    "lotka_volterra": (
        2,
        "dy[0] = p[0] * y[0] - p[1] * y[0] * y[1]; dy[1] = -p[2] * y[1] + p[3] * y[0] * y[1];",
    ),
    "lorenz": (
        3,
        "dy[0] = p[0] * (y[1] - y[0]); dy[1] = y[0] * (p[1] - y[2]) - y[1]; "
        "dy[2] = y[0] * y[1] - p[2] * y[2];",
    ),
}
_PROGRAM = """
#include <math.h>
#include <string.h>
#define N {width}
#define DEGREE {degree}

static inline void f(const double *y, const double *p, double *dy) {{ {field} }}

static double rms(const double *x) {{
  double s = 0; for (int i = 0; i < N; i++) s += x[i] * x[i]; return sqrt(s / N);
}}

static double first_step(const double *y, const double *k, const double *p, double span,
                         double rtol, double atol) {{
  double a[N], b[N], z[N], k2[N];
  for (int i = 0; i < N; i++) {{
    double scale = atol + rtol * fabs(y[i]); a[i] = y[i] / scale; b[i] = k[i] / scale;
  }}
  double size = rms(a), slope = rms(b);
  double h0 = size < 1e-5 || slope < 1e-5 ? 1e-6 : 0.01 * size / slope;
  h0 = fmin(h0, span);
  for (int i = 0; i < N; i++) z[i] = y[i] + h0 * k[i];
  f(z, p, k2);
  for (int i = 0; i < N; i++) a[i] = (k2[i] - k[i]) / (atol + rtol * fabs(y[i]));
  double largest = fmax(slope, rms(a) / h0);
  double h1 = largest <= 1e-15 ? fmax(1e-6, 1e-3 * h0) : pow(0.01 / largest, 1.0 / 5);
  return fmin(fmin(100 * h0, h1), span);
}}

long solve(const double *y0, const double *p, double t1, double rtol, double atol,
           const double *saves, long num_saves, double *out, long stride) {{
  double y[N], y1[N], z[N], k[{stages}][N], error[N];
  memcpy(y, y0, sizeof y);
  f(y, p, k[0]);
  double t = 0, h = first_step(y, k[0], p, t1, rtol, atol);
  long save = 0, steps = 0; int rejected = 0;
  while (save < num_saves && saves[save] <= 0) memcpy(out + stride * save++, y, sizeof y);
  while (t < t1) {{
    int last = h * 1.01 >= t1 - t;
    if (last) h = t1 - t;
{stage_code}
    double square = 0;
    for (int i = 0; i < N; i++) {{
      double e = h * ({error}) / (atol + rtol * fmax(fabs(y[i]), fabs(y1[i])));
      square += e * e;
    }}
    square /= N; steps++;
    double factor = fmin(fmax(0.9 * pow(square + 1e-30, -0.5 / 5), {smallest}), {largest});
    if (square <= 1) {{
      double t_next = last ? t1 : t + h;
      if (save < num_saves && saves[save] <= t_next) {{
        double q[DEGREE][N];
{dense_code}
        while (save < num_saves && saves[save] <= t_next) {{
          double s = (saves[save] - t) / h;
          for (int i = 0; i < N; i++) {{
            double v = 0; for (int d = DEGREE - 1; d >= 0; d--) v = (v + q[d][i]) * s;
            out[stride * save + i] = y[i] + v;
          }}
          save++;
        }}
      }}
      memcpy(y, y1, sizeof y); memcpy(k[0], k[{stages} - 1], sizeof y); t = t_next;
      if (rejected) factor = fmin(factor, 1); rejected = 0;
    }} else {{ factor = fmin(factor, 1); rejected = 1; }}
    h *= factor;
  }}
  if (!num_saves) memcpy(out, y, sizeof y);
  return steps;
}}

long solve_all(long rows, const double *y0, const double *p, long num_p, double t1, double rtol,
               double atol, const double *saves, long num_saves, double *out) {{
  long steps = 0;
  for (long r = 0; r < rows; r++)
    steps += solve(y0 + r * N, p + r * num_p, t1, rtol, atol, saves, num_saves, out + r * N,
                   rows * N);
  return steps;
}}
"""


def source(field):
    """The program for one equation.

    Args:
        field: a key of `_FIELDS`.

    Returns:
        C code.
    """
    width, body = _FIELDS[field]
    table = solvers.get("tsit5").tableau
    _, _, dense = table.interpolant()

    def total(weights, i="i"):
        terms = [f"{float(w)!r} * k[{j}][{i}]" for j, w in enumerate(weights) if w]
        return " + ".join(terms) or "0"

    stages = []
    for j, row in enumerate(table.a[1:], start=1):
        target = "y1" if j == len(table.a) - 1 else "z"
        stages.append(
            f"    for (int i = 0; i < N; i++) {target}[i] = y[i] + h * ({total(row)});\n"
            f"    f({target}, p, k[{j}]);"
        )
    columns = list(zip(*dense, strict=True))
    return _PROGRAM.format(
        width=width, field=body, degree=len(columns), stages=len(table.a),
        stage_code="\n".join(stages), error=total(table.error),
        dense_code="\n".join(
            f"        for (int i = 0; i < N; i++) q[{d}][i] = h * ({total(column)});"
            for d, column in enumerate(columns)
        ),
        smallest=0.2, largest=10.0,
    )  # fmt: skip


def library(field):
    """The compiled program, loaded."""
    with tempfile.TemporaryDirectory() as folder:
        code, binary = pathlib.Path(folder, "solve.c"), pathlib.Path(folder, "solve.so")
        code.write_text(source(field))
        flags = ["-O3", "-march=native", "-shared", "-fPIC", "-lm"]
        subprocess.run(["cc", str(code), "-o", str(binary), *flags], check=True)
        loaded = ctypes.CDLL(str(binary))
    loaded.solve_all.restype = ctypes.c_long
    return loaded


def build(spec, arrays):
    """The workload in C; see `benchmarks.workers.serve.Program`."""
    solve_all = library(spec["field"]).solve_all
    y0, (p,) = np.ascontiguousarray(arrays["y0"]), arrays["p"]
    p = np.ascontiguousarray(p)
    rows = spec["batch"] or 1
    saves = np.zeros(0) if spec["num_saves"] is None else np.ascontiguousarray(arrays["times"])
    out = np.empty((max(1, len(saves)), *y0.shape))

    def pointer(array):
        return array.ctypes.data_as(ctypes.c_void_p)

    def call():
        solve_all(
            ctypes.c_long(rows), pointer(y0), pointer(p), ctypes.c_long(p.shape[-1]),
            ctypes.c_double(spec["t1"]), ctypes.c_double(spec["rtol"]),
            ctypes.c_double(spec["atol"]), pointer(saves), ctypes.c_long(len(saves)), pointer(out),
        )  # fmt: skip
        return out

    return Program(
        call=call,
        values=lambda y: y.copy(),
        loop=lambda: sum(float(call().sum()) for _ in range(spec["loop"])),
        check_loop=lambda y, total: agree(y.sum(), total, spec["loop"]),
    )


if __name__ == "__main__":
    serve(build, ("numpy",))
