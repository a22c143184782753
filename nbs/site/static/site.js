// The page that is read is in sight in the navigation, however long that is.
addEventListener("DOMContentLoaded", () => {
  const box = document.querySelector(".sidebar-scroll");
  const here = document.querySelector(".sidebar-tree .current-page > a");
  if (!here) return;
  const beyond = here.getBoundingClientRect().top - box.getBoundingClientRect().top - box.clientHeight / 2;
  box.scrollTo({ top: box.scrollTop + beyond, behavior: "instant" });
});
