#!/usr/bin/env python3
"""Draws docs/images/gpu.svg: speed on one H100 beside other engines. Needs nothing but Python.

    plot_gpu.py [OUTPUT.svg]

Figures: docs/cuda/benchmarks.md (`gemma4 bench`); llama.cpp of August 2026 and Hugging Face transformers, measured on a GPU of
the same model.
"""
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS, OTHER = "#2563eb", "#9ca3af"
CHARTS = [
    ("decode, tokens a second", [("gemma4, int4", 153.6), ("gemma4, Q4_0", 153.0), ("llama.cpp, Q4_0", 87.5)]),
    ("decode at 16,384 tokens of context", [("gemma4, int4", 131.3), ("gemma4, Q4_0", 131.0), ("llama.cpp, Q4_0", 77.0)]),
    ("prompt of 2,048, tokens a second", [("gemma4, int4", 9133), ("gemma4, Q4_0", 9546), ("llama.cpp, Q4_0", 2773)]),
    ("image of 280 tokens, images a second", [("gemma4", 124.6), ("transformers, bf16", 1000 / 63.5)]),
    ("image of 1,120 tokens, images a second", [("gemma4", 20.1), ("transformers, bf16", 1000 / 112)]),
]
WIDTH, BAR, LEFT, LONGEST = 760, 22, 170, 470


def main():
    parts, y = [], 24
    for title, bars in CHARTS:
        parts.append(f'<text x="16" y="{y}" class="title">{title}</text>')
        y += 12
        most = max(value for _, value in bars)
        for name, value in bars:
            length = LONGEST * value / most
            shown = f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
            colour = OURS if name.startswith("gemma4") else OTHER
            parts.append(f'<text x="{LEFT - 8}" y="{y + 15}" text-anchor="end">{name}</text>')
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 4}" rx="2" fill="{colour}"/>')
            parts.append(f'<text x="{LEFT + length + 6:.1f}" y="{y + 15}">{shown}</text>')
            y += BAR
        y += 26
    style = "text{font:13px system-ui,sans-serif;fill:#1f2937}.title{font-weight:600}"
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y - 16}" role="img" '
           f'aria-label="Gemma 4 31B on one H100"><style>{style}</style>'
           f'<rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n')
    output = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/images/gpu.svg"
    output.write_text(svg)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
