// Which libraries does the program hold? The build replaces this file with one that says so (cmake/page.cmake).
export const libraries = {katex: false, highlight: false, pdf: false};
