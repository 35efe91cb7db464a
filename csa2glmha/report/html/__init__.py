"""The report as one self-contained page."""

from csa2glmha.report.html.page import HTML_FILE, html_page, write_html

__all__ = ["HTML_FILE", "html_page", "write_html"]
